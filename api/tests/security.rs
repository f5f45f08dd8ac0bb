//! Who gets in: every route for every kind of caller, tokens that somebody has made up, and the issuer's keys on good days
//! and bad ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use testkit::http::{Exchange, exchange};

use crate::http::{Service, free_address, problem, text};
use crate::openapi;
use crate::support::issuer::{AUDIENCE, ISSUER, Issuer, Key, Reply, base64, claims, config, now};
use crate::support::{Installation, lake};

/// SHA-256 of `operator-token`.
const STATIC: &str = r#"
    [api.auth.tokens.operator]
    sha256 = "0850123315d21ab90f4f7236408a52ef6dbd6a02a6550e5c10dc73f4d993680e"
    role = "operator"
"#;
/// From one fetch of keys to the next, and longer than one takes.
const COOL_DOWN: Duration = Duration::from_secs(30);
const FETCHED: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(250);

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Everybody,
    Readers,
    Operators,
    /// With a login of the last minutes.
    Present,
    Admins,
}

use For::{Admins, Everybody, Operators, Present, Readers};

struct Route {
    method: &'static str,
    /// As the OpenAPI document has it.
    path: &'static str,
    target: &'static str,
    body: &'static str,
    callers: For,
    /// For those who may call it, and for an admin of other tables.
    status: [u16; 2],
}

const REASON: &str = r#"{"reason":"test"}"#;

#[rustfmt::skip]
const ROUTES: [Route; 41] = [
    Route { method: "GET", path: "/livez", target: "/livez", body: "", callers: Everybody, status: [200, 200] },
    Route { method: "GET", path: "/readyz", target: "/readyz", body: "", callers: Everybody, status: [200, 200] },
    Route { method: "GET", path: "/metrics", target: "/metrics", body: "", callers: Everybody, status: [200, 200] },
    Route { method: "GET", path: "/console", target: "/console", body: "", callers: Everybody, status: [200, 200] },
    Route { method: "GET", path: "/console/", target: "/console/", body: "", callers: Everybody, status: [308, 308] },
    Route { method: "GET", path: "/console/{asset}", target: "/console/api.js", body: "", callers: Everybody, status: [200, 200] },
    Route { method: "GET", path: "/v1/openapi.json", target: "/v1/openapi.json", body: "", callers: Everybody, status: [200, 200] },
    Route { method: "GET", path: "/v1/me", target: "/v1/me", body: "", callers: Readers, status: [200, 200] },
    Route { method: "GET", path: "/v1/tables", target: "/v1/tables", body: "", callers: Readers, status: [200, 200] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}", target: "/v1/tables/app/orders", body: "", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/snapshots", target: "/v1/tables/app/orders/snapshots", body: "", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/history", target: "/v1/tables/app/orders/history", body: "", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/refs", target: "/v1/tables/app/orders/refs", body: "", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/tags/{name}", target: "/v1/tables/app/orders/tags/v1", body: "", callers: Readers, status: [404, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/health", target: "/v1/tables/app/orders/health", body: "", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/rows", target: "/v1/tables/app/orders/rows", body: "", callers: Readers, status: [200, 403] },
    Route { method: "POST", path: "/v1/tables/{namespace}/{table}/rows:query", target: "/v1/tables/app/orders/rows:query", body: "{}", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/diff", target: "/v1/tables/app/orders/diff?from=main&to=main", body: "", callers: Readers, status: [200, 403] },
    Route { method: "GET", path: "/v1/tables/{namespace}/{table}/quarantine", target: "/v1/tables/app/orders/quarantine", body: "", callers: Readers, status: [200, 403] },
    Route { method: "POST", path: "/v1/tables/{namespace}/{table}/quarantine:replay", target: "/v1/tables/app/orders/quarantine:replay", body: REASON, callers: Operators, status: [404, 403] },
    Route { method: "GET", path: "/v1/pipelines", target: "/v1/pipelines", body: "", callers: Readers, status: [200, 200] },
    Route { method: "GET", path: "/v1/pipelines/{pipeline}", target: "/v1/pipelines/app", body: "", callers: Readers, status: [200, 200] },
    Route { method: "GET", path: "/v1/operations", target: "/v1/operations", body: "", callers: Readers, status: [200, 200] },
    Route { method: "GET", path: "/v1/operations/{id}", target: "/v1/operations/none", body: "", callers: Readers, status: [404, 404] },
    Route { method: "GET", path: "/v1/maintenance/runs", target: "/v1/maintenance/runs", body: "", callers: Readers, status: [200, 200] },
    Route { method: "GET", path: "/v1/maintenance/runs/{id}", target: "/v1/maintenance/runs/none", body: "", callers: Operators, status: [404, 404] },
    Route { method: "POST", path: "/v1/maintenance", target: "/v1/maintenance", body: r#"{"tables":["app.orders"]}"#, callers: Operators, status: [200, 403] },
    Route { method: "POST", path: "/v1/pipelines/{pipeline}/verify", target: "/v1/pipelines/app/verify", body: r#"{"tables":["app.order"]}"#, callers: Operators, status: [404, 403] },
    Route { method: "GET", path: "/v1/verifications/{id}", target: "/v1/verifications/none", body: "", callers: Operators, status: [404, 404] },
    Route { method: "PUT", path: "/v1/tables/{namespace}/{table}/tags/{name}", target: "/v1/tables/app/orders/tags/v1", body: r#"{"cut":"0/64"}"#, callers: Operators, status: [428, 403] },
    Route { method: "DELETE", path: "/v1/tables/{namespace}/{table}/tags/{name}", target: "/v1/tables/app/orders/tags/v1", body: "{}", callers: Operators, status: [428, 403] },
    Route { method: "POST", path: "/v1/pipelines/{pipeline}/pause", target: "/v1/pipelines/app/pause", body: REASON, callers: Operators, status: [200, 403] },
    Route { method: "POST", path: "/v1/pipelines/{pipeline}/resume", target: "/v1/pipelines/app/resume", body: "{}", callers: Operators, status: [200, 403] },
    Route { method: "POST", path: "/v1/rollbacks", target: "/v1/rollbacks", body: r#"{"pipeline":"app","cut":"0/64"}"#, callers: Operators, status: [200, 403] },
    Route { method: "POST", path: "/v1/rollbacks/{id}/confirm", target: "/v1/rollbacks/none/confirm", body: REASON, callers: Present, status: [428, 428] },
    Route { method: "POST", path: "/v1/operations/{id}/undo", target: "/v1/operations/none/undo", body: REASON, callers: Present, status: [404, 404] },
    Route { method: "POST", path: "/v1/operations/{id}/abort", target: "/v1/operations/none/abort", body: REASON, callers: Present, status: [404, 404] },
    Route { method: "POST", path: "/v1/operations/{id}/accept", target: "/v1/operations/none/accept", body: REASON, callers: Present, status: [404, 404] },
    Route { method: "POST", path: "/v1/operations/{id}/replay", target: "/v1/operations/none/replay", body: REASON, callers: Present, status: [404, 404] },
    Route { method: "GET", path: "/v1/audit", target: "/v1/audit", body: "", callers: Admins, status: [200, 403] },
    // The last one: it takes the table out of the cut.
    Route { method: "POST", path: "/v1/pipelines/{pipeline}/resync", target: "/v1/pipelines/app/resync", body: r#"{"tables":["app.orders"],"reason":"test"}"#, callers: Present, status: [202, 403] },
];

/// Who may call each route that there is, by method and path.
fn declared() -> BTreeMap<(String, String), For> {
    let callers = |operation: &Value| match (operation["x-role"].as_str(), &operation["x-recent-login"]) {
        (None, Value::Null) => Everybody,
        (Some("reader"), Value::Null) => Readers,
        (Some("operator"), Value::Null) => Operators,
        (Some("operator"), Value::Bool(true)) => Present,
        (Some("admin"), Value::Null) => Admins,
        _ => panic!("nobody is meant by {operation}"),
    };
    let known = openapi::operations().map(|(method, path, operation)| ((method, path), callers(operation)));
    // It has a port of its own, and is not in the document.
    known.chain([(("GET".to_owned(), "/metrics".to_owned()), Everybody)]).collect()
}

/// Whom a token is of, as far as routes care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    /// Known, and granted nothing.
    Stranger,
    Reader,
    Operator,
    Admin,
    /// An operator whose login is long ago.
    Tired,
    /// An admin of other tables.
    Elsewhere,
    /// The same, who may read everything.
    ReaderAndElsewhere,
}

impl Route {
    fn expected(&self, who: Who) -> u16 {
        let [all, elsewhere] = self.status;
        match (self.callers, who) {
            (Everybody, _) => all,
            (_, Who::Nobody) => 401,
            (_, Who::Stranger) => 403,
            (_, Who::Admin) => all,
            (Admins, Who::Operator | Who::Tired) => 403,
            (_, Who::Operator) => all,
            (Present, Who::Tired) => 401,
            (_, Who::Tired) => all,
            (Readers, Who::Reader | Who::ReaderAndElsewhere) => all,
            (_, Who::Reader) => 403,
            (_, Who::Elsewhere | Who::ReaderAndElsewhere) => elsewhere,
        }
    }
}

async fn call(service: &Service, method: &str, target: &str, authorization: Option<&str>, body: &str) -> Exchange {
    let headers: Vec<_> = authorization.into_iter().map(|value| ("authorization", value)).collect();
    service.send(method, target, &headers, body).await
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The same claims with others in their place; without those that are null.
fn with(mut claims: Value, others: Value) -> Value {
    let known = claims.as_object_mut().expect("an object");
    known.extend(others.as_object().expect("an object").clone());
    known.retain(|_, value| !value.is_null());
    claims
}

#[test]
fn every_route_is_in_the_table() {
    let own = |route: &Route| ((route.method.to_owned(), route.path.to_owned()), route.callers);
    let known: BTreeMap<_, _> = ROUTES.iter().map(own).collect();
    assert_eq!(declared(), known, "the OpenAPI document, and the table of this file");
    assert_eq!(known.len(), ROUTES.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_every_caller() {
    let (key, forger) = (Key::elliptic("one"), Key::elliptic("one"));
    let issuer = Issuer::start(Reply::keys(&[key.public()])).await;
    let installation = lake::installation_with(&format!("{STATIC}{}", issuer.config()), &[]).await;
    let service = Service::start(&installation).await;
    let of = |groups: &[&str]| bearer(&key.token(&claims(groups)));
    let wrong = |others: Value| bearer(&key.token(&with(claims(&["admins"]), others)));
    let tired = json!({"auth_time": now() - 1_000});
    let callers = [
        ("nobody", Who::Nobody, None),
        ("a forger", Who::Nobody, Some(bearer(&forger.token(&claims(&["admins"]))))),
        ("somebody too late", Who::Nobody, Some(wrong(json!({"exp": now() - 60})))),
        ("somebody of another audience", Who::Nobody, Some(wrong(json!({"aud": "another"})))),
        ("somebody of another issuer", Who::Nobody, Some(wrong(json!({"iss": "https://another.example"})))),
        ("somebody without groups", Who::Stranger, Some(of(&[]))),
        ("somebody of other groups", Who::Stranger, Some(of(&["cooks"]))),
        ("a reader", Who::Reader, Some(of(&["readers"]))),
        ("an operator", Who::Operator, Some(of(&["operators"]))),
        ("an admin", Who::Admin, Some(of(&["cooks", "admins"]))),
        ("a tired operator", Who::Tired, Some(bearer(&key.token(&with(claims(&["operators"]), tired))))),
        ("an admin of other tables", Who::Elsewhere, Some(of(&["elsewhere"]))),
        ("one who may also read", Who::ReaderAndElsewhere, Some(of(&["elsewhere", "readers"]))),
        ("the bearer of a static token", Who::Operator, Some("Bearer operator-token".to_owned())),
    ];
    for route in &ROUTES {
        for (name, who, authorization) in &callers {
            let uri = if route.path == "/metrics" { &service.metrics } else { &service.uri };
            let headers: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
            let answer = exchange(route.method, &format!("{uri}{}", route.target), &headers, route.body).await;
            let answer = answer.expect("an answer");
            let told = if answer.status() < 400 { String::new() } else { text(&answer) };
            assert_eq!(answer.status(), route.expected(*who), "{} {} for {name}: {told}", route.method, route.path);
            let code = match answer.status() {
                401 if *who == Who::Tired => "LOGIN_REQUIRED",
                401 => "UNAUTHENTICATED",
                403 => "FORBIDDEN",
                _ => continue,
            };
            assert_eq!(problem(&answer), (answer.status(), code.to_owned()), "{} for {name}", route.path);
        }
    }
}

/// Tokens that prove nothing, each with the word that says why.
fn hostile(
    key: &Key,
    rsa: &Key,
    hidden: &Key,
    forger: &Key,
    forgers: &str,
    document: &str,
) -> Vec<(String, &'static str)> {
    let good = claims(&["admins"]);
    let payload = good.to_string();
    let header = |others: Value| with(key.header(), others);
    // Signed rightly, with something else in the header or the claims.
    let headed = |others: Value| key.signed(&header(others), &payload);
    let claiming = |others: Value| key.token(&with(good.clone(), others));
    let raw = |payload: &str| key.signed(&key.header(), payload);
    let symmetric = |algorithm: Algorithm, secret: &[u8]| {
        let header = with(key.header(), json!({"alg": algorithm}));
        let message = format!("{}.{}", base64(header.to_string()), base64(&payload));
        let secret = EncodingKey::from_secret(secret).expect("a secret");
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &secret, algorithm).expect("a signature");
        format!("{message}.{signature}")
    };
    let whole = key.token(&good);
    let mut parts = whole.split('.');
    let mut part = || parts.next().expect("three parts");
    let (head, body, signature) = (part(), part(), part());
    let signed = |signature: &str| format!("{head}.{body}.{signature}");
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let x = key.public()["x"].as_str().expect("a coordinate").to_owned();
    let brought = forger.public();
    let mut attempts = Vec::new();
    let mut all =
        |why: &'static str, tokens: Vec<String>| attempts.extend(tokens.into_iter().map(|token| (token, why)));
    // First, while the issuer is not asked again.
    all(
        "unknown_key",
        vec![
            headed(json!({"alg": "RS256"})),
            headed(json!({"kid": "two"})),
            headed(json!({"kid": "three"})),
            headed(json!({"kid": "ONE"})),
            headed(json!({"kid": ""})),
            headed(json!({"kid": null})),
            headed(json!({"kid": "../../../../dev/null"})),
            headed(json!({"kid": "x' UNION SELECT 'one"})),
            hidden.token(&good),
        ],
    );
    all(
        "token_form",
        vec![
            format!("{}.{body}.", base64(r#"{"alg":"none","typ":"JWT","kid":"one"}"#)),
            format!("{}.{body}.", base64(r#"{"alg":"nOnE","typ":"JWT"}"#)),
            headed(json!({"alg": "none"})),
            headed(json!({"alg": null})),
            headed(json!({"kid": 1})),
            headed(json!({"crit": ["exp"]})),
            headed(json!({"crit": ["b64"], "b64": true})),
            headed(json!({"crit": []})),
            headed(json!({"b64": false})),
            headed(json!({"typ": "logout+jwt"})),
            headed(json!({"typ": "JOSE"})),
            headed(json!({"zip": "DEF"})),
            headed(json!({"enc": "A128GCM"})),
            key.signed(&header(json!({"cty": "JWT"})), &whole),
            key.signed_text(&base64(r#"{"alg":"ES256","kid":"one","alg":"ES256"}"#), body),
            key.signed_text("e30", body),
            key.signed_text("!!!!", body),
            key.signed_text(head, &format!("{body}=")),
            key.signed_text(head, "****"),
            signed("!!!"),
            signed(&format!("{signature}=")),
            format!("{head}.{body}"),
            format!("{whole}.{signature}"),
            format!("{head}.{body}.{signature}.{body}.{signature}"),
            ".".to_owned(),
            "...".to_owned(),
        ],
    );
    all(
        "algorithm",
        vec![
            symmetric(Algorithm::HS256, key.public_bytes()),
            symmetric(Algorithm::HS256, rsa.public_bytes()),
            symmetric(Algorithm::HS384, x.as_bytes()),
            symmetric(Algorithm::HS512, document.as_bytes()),
            headed(json!({"alg": "ES384"})),
            rsa.signed(&with(rsa.header(), json!({"alg": "PS256"})), &payload),
            headed(json!({"alg": "EdDSA"})),
        ],
    );
    all(
        "signature",
        vec![
            forger.token(&good),
            forger.signed(&with(forger.header(), json!({"jwk": brought})), &payload),
            forger.signed(&with(forger.header(), json!({"jku": forgers})), &payload),
            forger.signed(&with(forger.header(), json!({"x5u": forgers})), &payload),
            forger.signed(&with(forger.header(), json!({"x5c": [base64(forger.public_bytes())]})), &payload),
            format!("{head}.{}.{signature}", base64(with(good.clone(), json!({"sub": "mallory"})).to_string())),
            format!("{}.{body}.{signature}", base64(header(json!({"typ": "at+jwt"})).to_string())),
            signed(""),
            signed(&base64([0; 64])),
            signed(&base64([0xff; 64])),
            signed(&signature[..signature.len() - 2]),
            signed(&format!("{first}{}", &signature[1..])),
            signed(&base64(key.raw_signature(&format!("{head}.{body}")))),
            rsa.signed(&key.header(), &payload),
        ],
    );
    all("expired_token", vec![claiming(json!({"exp": now() - 60})), claiming(json!({"exp": 0}))]);
    all("early_token", vec![claiming(json!({"nbf": now() + 600})), claiming(json!({"nbf": u64::MAX}))]);
    all(
        "issuer",
        vec![
            claiming(json!({"iss": null})),
            claiming(json!({"iss": "https://id.example"})),
            claiming(json!({"iss": format!("{ISSUER}/")})),
            claiming(json!({"iss": [ISSUER]})),
            claiming(json!({"iss": 7})),
        ],
    );
    all(
        "audience",
        vec![
            claiming(json!({"aud": "another"})),
            claiming(json!({"aud": ["another", "third"]})),
            claiming(json!({"aud": []})),
            claiming(json!({"aud": format!("{AUDIENCE} ")})),
        ],
    );
    all(
        "claims",
        vec![
            claiming(json!({"exp": null})),
            claiming(json!({"exp": "tomorrow"})),
            claiming(json!({"exp": -1})),
            claiming(json!({"nbf": "now"})),
            claiming(json!({"aud": null})),
            claiming(json!({"aud": 7})),
            claiming(json!({"sub": null})),
            claiming(json!({"sub": ""})),
            claiming(json!({"sub": 7})),
            claiming(json!({"sub": "ann\nmallory"})),
            claiming(json!({"sub": "a".repeat(256)})),
            raw(&payload.replacen('{', r#"{"sub":"mallory","#, 1)),
            raw(&payload.replacen('{', r#"{"groups":["cooks"],"#, 1)),
            raw("[]"),
            raw("admins"),
            raw(""),
        ],
    );
    all("token_size", vec![claiming(json!({"padding": "x".repeat(8 << 10)}))]);
    all("unknown_token", vec![format!(r#"{{"payload":"{body}","signature":"{signature}"}}"#), "x".repeat(9 << 10)]);
    attempts
}

/// How often each reason stands in the metrics.
async fn refusals(service: &Service) -> BTreeMap<String, usize> {
    let metrics = exchange("GET", &format!("{}/metrics", service.metrics), &[], "").await.expect("metrics");
    let line = |line: &str| {
        let (reason, count) = line.strip_prefix("lakehouse_http_refused_total{reason=\"")?.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().expect("a number")))
    };
    text(&metrics).lines().filter_map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_somebody_has_made_up_does_nothing_and_is_repeated_nowhere() {
    let (key, rsa, hidden, forger) =
        (Key::elliptic("one"), Key::rsa("two"), Key::elliptic("hidden"), Key::elliptic("one"));
    let for_something_else = with(hidden.public(), json!({"use": "enc"}));
    let symmetric = json!({"kty": "oct", "kid": "three", "k": base64("a secret that is none")});
    let published = [key.public(), rsa.public(), for_something_else, symmetric];
    let issuer = Issuer::start(Reply::keys(&published)).await;
    let forgers = Issuer::start(Reply::keys(&[forger.public()])).await;
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{}", issuer.config());
    let installation = lake::installation_with(&config, &[]).await;
    let service = Service::start(&installation).await;
    let good = bearer(&key.token(&claims(&["admins"])));
    let pipeline = async || text(&call(&service, "GET", "/v1/pipelines/app", Some(&good), "").await);
    let before = pipeline().await;
    assert!(before.contains("\"paused\":null"), "{before}");

    let document = json!({"keys": published}).to_string();
    let attempts = hostile(&key, &rsa, &hidden, &forger, &forgers.uri, &document);
    assert!(attempts.len() >= 40, "{}", attempts.len());
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    for (token, why) in &attempts {
        let counted = refusals(&service).await;
        let answer = call(&service, "POST", "/v1/pipelines/app/pause", Some(&bearer(token)), REASON).await;
        assert_eq!(problem(&answer), (401, "UNAUTHENTICATED".to_owned()), "{why}: {token}");
        let now = refusals(&service).await;
        let added: Vec<_> = now.iter().filter(|(reason, count)| counted.get(*reason) != Some(*count)).collect();
        *expected.entry((*why).to_owned()).or_default() += 1;
        assert_eq!(added, [(&(*why).to_owned(), &expected[*why])], "{token}");
    }
    let twice = [("authorization", good.as_str()), ("authorization", good.as_str())];
    let answer = service.send("POST", "/v1/pipelines/app/pause", &twice, REASON).await;
    assert_eq!(problem(&answer), (401, "UNAUTHENTICATED".to_owned()), "two tokens");
    let query = format!("/v1/pipelines/app/pause?access_token={}", key.token(&claims(&["admins"])));
    assert_eq!(problem(&call(&service, "POST", &query, None, REASON).await).0, 401, "a token in the address");

    assert_eq!(pipeline().await, before);
    assert_eq!(forgers.asked(), 0, "nobody asks whom a token names");
    assert_eq!(issuer.asked(), 1, "made-up names of keys ask for nothing within the cool-down");
    // What is repeated of a token is its subject, once it is proved.
    let trail = std::fs::read_to_string(installation.path().join("audit.jsonl")).expect("a trail");
    let log = installation.log();
    assert!(log.contains("token_form") && trail.contains("token_form"), "{log}{trail}");
    let tokens = attempts.iter().map(|(token, _)| token.as_str()).chain([good.as_str()]);
    for part in tokens.flat_map(|token| token.split([' ', '.'])) {
        let is_shown = part.len() > 16 && (log.contains(part) || trail.contains(part));
        assert!(!is_shown, "{part}");
    }
    for secret in ["mallory", "Bearer ey"] {
        assert!(!log.contains(secret) && !trail.contains(secret), "{secret}: {log}{trail}");
    }

    // The same call with tokens that are as they should be.
    for token in [
        key.token(&claims(&["admins"])),
        rsa.token(&claims(&["operators"])),
        key.token(&with(
            claims(&["admins"]),
            json!({"aud": ["another", AUDIENCE], "nbf": now() - 1, "exp": now() - 10}),
        )),
        key.signed(&with(key.header(), json!({"typ": "at+JWT"})), &claims(&["admins"]).to_string()),
        key.signed(&with(key.header(), json!({"typ": null})), &claims(&["admins"]).to_string()),
    ] {
        let answer = call(&service, "POST", "/v1/pipelines/app/pause", Some(&bearer(&token)), REASON).await;
        assert_eq!(answer.status(), 200, "{}", text(&answer));
    }
    assert!(pipeline().await.contains("\"paused\":\"test\""));
    let trail = std::fs::read_to_string(installation.path().join("audit.jsonl")).expect("a trail");
    assert!(trail.contains("\"principal\":\"oidc:ann\""), "{trail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hard_to_undo_wants_a_login_of_the_last_minutes() {
    let key = Key::elliptic("one");
    let issuer = Issuer::start(Reply::keys(&[key.public()])).await;
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{STATIC}{}", issuer.config());
    let installation = lake::installation_with(&config, &[]).await;
    let service = Service::start(&installation).await;
    let resync = r#"{"tables":["app.orders"],"reason":"test"}"#;
    for (others, expected) in [
        (json!({"auth_time": now() - 1_000}), 401),
        (json!({"auth_time": now() - 1_000, "iat": now()}), 401),
        (json!({"auth_time": null, "iat": now() - 1_000}), 401),
        (json!({"auth_time": null, "iat": null}), 401),
        (json!({"auth_time": "now"}), 401),
        (json!({"auth_time": now() + 3_600}), 401),
        (json!({"auth_time": now() - 600, "iat": now() - 1_000}), 202),
        (json!({"auth_time": null, "iat": now() - 600}), 202),
        (json!({"auth_time": now() + 5}), 202),
    ] {
        let token = bearer(&key.token(&with(claims(&["operators"]), others.clone())));
        assert_eq!(call(&service, "GET", "/v1/me", Some(&token), "").await.status(), 200, "{others}");
        let answer = call(&service, "POST", "/v1/pipelines/app/resync", Some(&token), resync).await;
        assert_eq!(answer.status(), expected, "{others}: {}", text(&answer));
        if expected == 401 {
            assert_eq!(problem(&answer).1, "LOGIN_REQUIRED");
            let challenge = "Bearer error=\"insufficient_user_authentication\", max_age=900";
            assert_eq!(answer.header("www-authenticate"), Some(challenge));
        }
    }
    let answer = call(&service, "POST", "/v1/pipelines/app/resync", Some("Bearer operator-token"), resync).await;
    assert_eq!(answer.status(), 202, "a static token is no login");
    let trail = std::fs::read_to_string(installation.path().join("audit.jsonl")).expect("a trail");
    let entries: Vec<Value> = trail.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect();
    let refused: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "refused").collect();
    assert_eq!(refused.len(), 6, "{trail}");
    for entry in refused {
        assert_eq!((&entry["principal"], &entry["detail"]["why"]), (&json!("oidc:ann"), &json!("login")), "{entry}");
    }
    let told =
        call(&service, "GET", "/v1/me", Some(&bearer(&key.token(&claims(&["operators", "elsewhere"])))), "").await;
    let told: Value = serde_json::from_slice(&told.content()).expect("JSON");
    assert_eq!((&told["principal"], &told["role"]), (&json!("oidc:ann"), &json!("admin")), "{told}");
    let tables: BTreeSet<_> = told["tables"].as_array().expect("tables").iter().filter_map(Value::as_str).collect();
    assert_eq!(tables, BTreeSet::from(["*.*", "other.*"]));
}

/// Until the service answers the token in this way.
async fn becomes(service: &Service, token: &str, status: u16, within: Duration) {
    let begun = Instant::now();
    while call(service, "GET", "/v1/me", Some(&bearer(token)), "").await.status() != status {
        assert!(begun.elapsed() < within, "not {status} within {within:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Until the issuer has been asked so often.
async fn asked(issuer: &Issuer, times: usize, within: Duration) {
    let begun = Instant::now();
    while issuer.asked() < times {
        assert!(begun.elapsed() < within, "asked {} times, not {times}", issuer.asked());
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_without_a_restart_and_outlive_an_issuer_that_is_away() {
    let (old, new) = (Key::elliptic("old"), Key::rsa("new"));
    let (old_token, new_token) = (old.token(&claims(&["readers"])), new.token(&claims(&["readers"])));
    let issuer = Issuer::start(Reply::keys(&[old.public()])).await;
    let installation = lake::installation_with(&issuer.config(), &[]).await;
    let service = Service::start(&installation).await;
    let me = async |token: &str| call(&service, "GET", "/v1/me", Some(&bearer(token)), "").await.status();
    assert_eq!(me(&old_token).await, 200);
    // Its only key needs no name.
    let nameless = old.signed(&with(old.header(), json!({"kid": null})), &claims(&["readers"]).to_string());
    assert_eq!(me(&nameless).await, 200);
    // The new key is asked for once the cool-down is over, by whoever needs it; this time in vain.
    issuer.replies(Reply::Status(500));
    let begun = Instant::now();
    while issuer.asked() < 2 {
        assert!(begun.elapsed() < COOL_DOWN + FETCHED, "nobody has asked for the key");
        assert_eq!((me(&new_token).await, me(&old_token).await), (401, 200));
        tokio::time::sleep(POLL).await;
    }
    assert!(begun.elapsed() > COOL_DOWN / 2, "made-up names of keys hurry the service");
    assert_eq!((me(&new_token).await, me(&old_token).await), (401, 200), "what was fetched before counts");
    // A fetch that has failed is repeated by itself; what the issuer has withdrawn ends.
    issuer.replies(Reply::keys(&[new.public()]));
    asked(&issuer, 3, COOL_DOWN + FETCHED).await;
    becomes(&service, &new_token, 200, FETCHED).await;
    assert_eq!((me(&old_token).await, me(&nameless).await), (401, 401));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_gives_no_keys_lets_nobody_in_and_nobody_else_out() {
    let key = Key::elliptic("one");
    let elsewhere = Issuer::start(Reply::keys(&[key.public()])).await;
    let document = json!({"keys": [key.public()]}).to_string();
    for (name, reply) in [
        ("an error", Some(Reply::Status(500))),
        ("nothing", Some(Reply::Silence)),
        ("too much", Some(Reply::Document(format!("{document}{}", " ".repeat(2 << 20))))),
        ("too many", Some(Reply::keys(&vec![key.public(); 101]))),
        ("garbage", Some(Reply::Document("<html>log in first</html>".to_owned()))),
        ("half a document", Some(Reply::Document(document[..document.len() / 2].to_owned()))),
        ("no keys", Some(Reply::keys(&[]))),
        ("another address", Some(Reply::Redirect(elsewhere.uri.clone()))),
        ("no connection", None),
    ] {
        let issuer = match &reply {
            Some(reply) => Some(Issuer::start(reply.clone()).await),
            None => None,
        };
        let uri =
            issuer.as_ref().map_or_else(|| format!("http://{}/keys", free_address()), |issuer| issuer.uri.clone());
        let installation = lake::installation_with(&format!("{STATIC}{}", config(&uri)), &[]).await;
        let service = Service::start(&installation).await;
        let begun = Instant::now();
        let answer = call(&service, "GET", "/v1/me", Some(&bearer(&key.token(&claims(&["admins"])))), "").await;
        assert_eq!(problem(&answer), (401, "UNAUTHENTICATED".to_owned()), "{name}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{name}: {:?}", begun.elapsed());
        assert_eq!(refusals(&service).await, BTreeMap::from([("no_keys".to_owned(), 1)]), "{name}");
        assert_eq!(call(&service, "GET", "/v1/me", Some("Bearer operator-token"), "").await.status(), 200, "{name}");
        assert!(installation.log().contains("JWKS_UNREADABLE"), "{name}: {}", installation.log());
    }
    assert_eq!(elsewhere.asked(), 0, "a redirect is followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_cannot_be_trusted_is_refused_before_anything_starts() {
    let good = config("https://id.example/keys");
    for (from, to, part) in [
        ("https://id.example/keys", "http://id.example/keys", "jwks_uri"),
        ("\"ES256\", \"RS256\"", "\"RS256\", \"HS256\"", "HS256"),
        ("\"ES256\", \"RS256\"", "\"none\"", "none"),
    ] {
        let installation = Installation::new(&format!("{}{}", lake::CONFIG, good.replace(from, to)));
        let answer = installation.json(&["serve"]);
        assert_eq!(answer.error(), (2, "CONFIG_VALUE".to_owned()), "{to}: {answer:?}");
        assert!(answer.text().contains(part), "{answer:?}");
    }
}
