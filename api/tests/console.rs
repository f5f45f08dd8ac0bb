//! The operators' console in a real browser, on the real binary, while a worker follows its source (long tier): a whole
//! rollback as a person does it, the names of snapshots, maintenance, quarantine and the audit trail, what each role is not
//! offered, and cells that would like to be more than text.
//!
//! That the page and its parts are served to everybody, and with what headers, is in `http.rs`.

use std::fs;

use crate::live::{Live, stop};
use crate::operate_http::serve;
use crate::support::browser::Browser;
use serde_json::{Value, json};
use testkit::http::exchange;
use testkit::lakehouse::Process;
use testkit::postgres::Options;

/// A trail, two small files as a reason to merge them, and SHA-256 of `admin-token`, `operator-token` and `reader-token`.
const CONFIG: &str = r#"
[audit]
file = "audit.jsonl"
[maintenance]
small_files = 2
[api]
[api.auth.tokens.admin]
sha256 = "10a4c7c9fc5206d6f36dc6944a81bb6f4a3cb0e25014ae3b12e6c3e52712292a"
role = "admin"
[api.auth.tokens.operator]
sha256 = "0850123315d21ab90f4f7236408a52ef6dbd6a02a6550e5c10dc73f4d993680e"
role = "operator"
[api.auth.tokens.reader]
sha256 = "ba5005a40cf5212e4ac0190104cc127edab013294bb71279a975b27a80982d45"
role = "reader"
"#;

/// Markup, a formula, and a text that reads backwards on a page that lets it.
const HOSTILE: [&str; 3] = [
    r#"<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"#,
    r#"=HYPERLINK("javascript:document.title='owned'","look")"#,
    "invoice\u{202E}fdp.exe\u{202C} \u{200B}end",
];

struct Scene {
    browser: Browser,
    _service: Process,
    uri: String,
    live: Live,
}

impl Scene {
    async fn begin(browser: Browser) -> (Self, Process) {
        let live = Live::new(Options::default()).await;
        let text = fs::read_to_string(live.site.lakehouse.config()).expect("a configuration");
        live.site.lakehouse.configure(&format!("{text}{CONFIG}"));
        live.sql(
            "CREATE TABLE t (id int8 PRIMARY KEY, n int8 NOT NULL);
             CREATE TABLE odd (id int8 PRIMARY KEY, name text);
             INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n",
        )
        .await;
        for (number, text) in (9_007_199_254_740_993_i64..).zip(HOSTILE) {
            live.sql(&format!("INSERT INTO odd VALUES ({number}, '{}')", text.replace('\'', "''"))).await;
        }
        let worker = live.site.start();
        live.site.caught_up().await;
        let (service, uri) = serve(&live).await;
        (Self { browser, _service: service, uri, live }, worker)
    }

    async fn sign_in(&self, role: &str) {
        self.browser.write("token", &format!("{role}-token")).await;
        self.browser.press("Sign in").await;
        self.browser.sees(&format!("role {role}, all tables")).await;
    }

    async fn change(&self, sql: &str) {
        self.live.sql(sql).await;
        self.live.site.caught_up().await;
    }

    async fn get(&self, target: &str) -> Value {
        let operator = [("authorization", "Bearer operator-token")];
        let answer = exchange("GET", &format!("{}/v1/{target}", self.uri), &operator, "").await.expect(target);
        assert_eq!(answer.status(), 200, "{target}");
        serde_json::from_slice(&answer.content()).expect("JSON")
    }

    async fn head(&self) -> String {
        self.get("tables/app/t").await["snapshot_id"].as_str().expect("a snapshot").to_owned()
    }

    /// How many rows of `t` have which `n`, at its head.
    async fn rows(&self) -> (usize, usize) {
        let told = self.get("tables/app/t/rows").await;
        let rows = told["rows"].as_array().expect("rows");
        (rows.len(), rows.iter().filter(|row| row["n"] != 0).count())
    }

    /// To a view of the same page, which has come once it shows the text.
    async fn go(&self, address: &str, shows: &str) {
        self.browser.run(&format!("location.hash = '{address}'")).await;
        self.browser.sees(shows).await;
    }

    async fn sign_out(&self) {
        self.browser.press("Sign out").await;
        self.browser.sees("Without a token").await;
    }

    /// Fills in what an order asks for, and gives it.
    async fn order(&self, verb: &str, reason: &str) {
        // Pasted: no keyboard has all of these characters.
        let paste = format!("document.querySelector('dialog [name=reason]').value = {}", json!(reason));
        self.browser.run(&paste).await;
        self.browser.press("Go on").await;
        self.browser.click(&format!("//dialog//button[normalize-space()='{verb}']")).await;
        self.browser.loses("dialog").await;
    }

    /// What the buttons of the view are called.
    async fn buttons(&self) -> Vec<String> {
        let script = "return [...document.querySelectorAll('#main button')].map(one => one.innerText)";
        let names = self.browser.run(script).await;
        names.as_array().expect("names").iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
    }

    /// How many elements of the page the selector finds.
    async fn count(&self, selector: &str) -> u64 {
        let script = format!("return document.querySelectorAll(`{selector}`).length");
        self.browser.run(&script).await.as_u64().expect("a number")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_done_and_undone_in_the_console() {
    let Some(browser) = Browser::start().await else { return };
    let (scene, worker) = Scene::begin(browser).await;
    let page = &scene.browser;
    let target = scene.head().await;
    scene.change("UPDATE t SET n = 1 WHERE id <= 50; DELETE FROM t WHERE id > 90").await;
    page.open(&format!("{}/console", scene.uri)).await;

    // Not with a wrong token; a reader is offered nothing that changes anything.
    page.write("token", "wrong").await;
    page.press("Sign in").await;
    page.sees("UNAUTHENTICATED").await;
    page.run("document.querySelector('[name=token]').value = ''").await;
    scene.sign_in("reader").await;
    page.sees("app.odd_history").await;
    page.sees("streaming").await;
    for address in ["#/", "#/tables/app/t", "#/operations", "#/rollback/app"] {
        page.run(&format!("location.hash = '{address}'")).await;
        page.run("return new Promise(done => setTimeout(done, 1000))").await;
        let verbs = page.run("return document.getElementById('main').innerText.match(/\\b(Pause|Resume|Resync|Verify|Preview)\\b|^Roll back$/m)");
        assert_eq!(verbs.await, Value::Null, "{address}");
    }
    page.press("Sign out").await;
    scene.sign_in("operator").await;
    page.run("location.hash = '#/'").await;
    page.click("//button[normalize-space()='Pause']").await;
    page.press("Cancel").await;

    // Cells are text.
    page.click("//a[.='app.odd']").await;
    page.click("(//button[starts-with(@id,'pick-')])[1]").await;
    page.sees("9007199254740993").await;
    for (text, shown) in HOSTILE.iter().zip([HOSTILE[0], HOSTILE[1], "invoiceU+202Efdp.exeU+202C U+200Bend"]) {
        page.sees(shown).await;
        assert!(*text == shown || !page.run("return document.body.innerText").await.to_string().contains(text));
    }
    assert_eq!(scene.count("#main img, #main script, #main a[href^=javascript]").await, 0);
    assert_ne!(page.run("return document.title").await, "owned");

    // From a snapshot to its preview, the reason and the confirmation, which comes too late at first.
    page.run("location.hash = '#/tables/app/t'").await;
    page.click(&format!("//button[@id='pick-{target}']")).await;
    page.sees(&format!("FOR VERSION AS OF {target}")).await;
    page.press("Compare").await;
    page.sees("+0 ~50 -10").await;
    page.press("Roll back to this").await;
    page.press("Preview").await;
    page.sees("+10").await;
    page.sees("undo, replay, accept, resync").await;
    page.press("Go on").await;
    page.write("reason", "import 17 was wrong").await;
    page.press("Go on").await;
    page.sees("take no changes until").await;
    scene.change("DELETE FROM t WHERE id BETWEEN 81 AND 90").await;
    let (head, wrong) = (scene.head().await, scene.rows().await);
    page.press("Roll back 1 table").await;
    page.sees("These tables have moved since the preview before").await;
    page.sees("+20").await;
    assert_eq!((scene.head().await, wrong), (head, (80, 50)), "nothing was changed");
    page.press("Go on").await;
    assert_eq!(page.run("return document.querySelector('[name=reason]').value").await, "import 17 was wrong");
    page.press("Go on").await;
    page.press("Roll back 1 table").await;
    page.sees("Every table stands at its target.").await;
    page.sees("paused_diverged").await;
    assert_eq!(scene.rows().await, (100, 0));
    let operations = scene.get("operations").await;
    let operation = &operations["operations"][0];
    assert_eq!((&operation["reason"], &operation["stage"]), (&json!("import 17 was wrong"), &json!("rolled_back")));

    // Back again, not without a reason.
    page.press("Undo").await;
    page.press("Go on").await;
    page.sees("a reason is never blank").await;
    page.write("reason", "it was right after all").await;
    page.press("Go on").await;
    page.click("//dialog//button[normalize-space()='Undo']").await;
    page.sees("Every table has the rows that it had before.").await;
    page.sees("it was right after all").await;
    page.sees("● streaming").await;
    scene.live.site.caught_up().await;
    assert_eq!(scene.rows().await, wrong);
    scene.live.site.assert_equal().await;

    // The token is in no address and no storage, and the page has asked nobody else for anything.
    let kept = page.run("return [location.href, document.cookie, ...Object.values(localStorage), ...Object.values(sessionStorage)].join()");
    assert!(!kept.await.to_string().contains("operator-token"));
    let origins =
        page.run("return [...new Set(performance.getEntriesByType('resource').map(one => new URL(one.name).origin))]");
    assert_eq!(origins.await, json!([scene.uri]));
    let log = page.log().await;
    assert!(!log.contains("Content Security Policy") && !log.contains("Uncaught"), "{log}");
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_maintenance_quarantine_and_audit_are_seen_to_at_a_desk_and_on_a_phone() {
    let Some(browser) = Browser::start().await else { return };
    let (scene, worker) = Scene::begin(browser).await;
    let page = &scene.browser;
    let first = scene.head().await;
    for number in 1..=4 {
        scene.change(&format!("INSERT INTO t VALUES (1000 + {number}, 0)")).await;
    }
    let head = scene.head().await;
    page.open(&format!("{}/console", scene.uri)).await;
    let quarantined = |column: &str, reason: &str| {
        json!({"committed_at": "2026-01-01T00:00:00Z", "position": null, "lane": null, "offset": null,
               "operation": "insert", "key": "9f86d081", "column": column, "code": "VALUE_MISMATCH", "reason": reason})
    };
    let rows = json!({"table": "app.t", "quarantine": "app.t_quarantine", "rows": 2,
                      "quarantined": [quarantined(HOSTILE[0], HOSTILE[1]), quarantined("n", HOSTILE[2])]});
    // Rows of PostgreSQL are never quarantined: this is what the service would list.
    page.run(&format!(
        "const real = window.fetch;
         window.fetch = (target, options) =>
           String(target).includes('/quarantine?') ? Promise.resolve(Response.json({rows})) : real(target, options)"
    ))
    .await;
    let (first_view, head_view) =
        (format!("#/tables/app/t?snapshot={first}"), format!("#/tables/app/t?snapshot={head}"));

    // A reader looks, and changes nothing.
    scene.sign_in("reader").await;
    for (address, shows) in [
        (head_view.as_str(), "FOR VERSION AS OF"),
        ("#/tables/app/t/quarantine", "2 rows in app.t_quarantine"),
        ("#/maintenance?table=app.t", "Nothing yet."),
        ("#/audit", "The role reader does not see the audit trail."),
    ] {
        scene.go(address, shows).await;
        let verbs = ["Tag", "Protect", "Replay", "Dry run", "Run"];
        let offered = scene.buttons().await;
        assert!(!verbs.iter().any(|verb| offered.iter().any(|name| name == verb)), "{address}: {offered:?}");
    }
    assert_eq!(scene.count("nav a[href='#/audit']").await, 0);
    scene.sign_out().await;

    // A name is given, moved, and made one that stays; all with reasons that would like to be markup.
    scene.sign_in("admin").await;
    let tagged = async || scene.get("tables/app/t/tags/before-17").await["snapshot_id"].clone();
    scene.go(&first_view, &format!("FOR VERSION AS OF {first}")).await;
    page.click("//button[@id='tag']").await;
    page.write("tag", "before-17").await;
    scene.order("Tag", HOSTILE[0]).await;
    page.sees("Untag before-17").await;
    assert_eq!(tagged().await, json!(first));
    scene.go(&head_view, &format!("FOR VERSION AS OF {head}")).await;
    page.click("//button[@id='tag']").await;
    page.write("tag", "before-17").await;
    page.write("reason", "the other one").await;
    page.press("Go on").await;
    page.sees("Moves from").await;
    page.click("//dialog//button[normalize-space()='Tag']").await;
    page.sees("Untag before-17").await;
    assert_eq!(tagged().await, json!(head));
    page.click("//button[@id='protect']").await;
    page.write("tag", "year-end").await;
    scene.order("Protect", HOSTILE[2]).await;
    page.sees("Untag protected/year-end").await;
    scene.sign_out().await;

    // What stays is not an operator's to take away.
    scene.sign_in("operator").await;
    assert_eq!(scene.count("nav a[href='#/audit']").await, 0);
    scene.go("#/", "Pipelines").await;
    scene.go(&head_view, "Untag before-17").await;
    assert_eq!(scene.count("[id='untag-protected/year-end']").await, 0);
    page.click("//button[@id='untag-before-17']").await;
    scene.order("Untag", "no longer needed").await;
    page.loses("#untag-before-17").await;

    // A dry run is a plan, and a pass of it leaves a step in the history.
    scene.go("#/maintenance?table=app.t", "Nothing yet.").await;
    page.press("Dry run").await;
    page.sees("small-files").await;
    page.click("//button[@id='run']").await;
    scene.order("Run", "many small files").await;
    page.sees("● done").await;
    page.press("All that was done").await;
    page.sees("landed").await;

    // A pipeline is compared with its source, and the verdict comes to stand where it was asked for.
    scene.go("#/", "Pipelines").await;
    page.click("//button[@id='verify-app']").await;
    scene.order("Verify", "before the report").await;
    page.sees("● equal").await;
    scene.sign_out().await;

    // All of it at both widths: nothing is wider than the window, and what is hostile is a text.
    scene.sign_in("admin").await;
    for (width, height, place) in [(1_280, 1_000, "desk"), (390, 844, "phone")] {
        page.resize(width, height).await;
        for (name, address, shows) in [
            ("overview", "#/", "app.odd_history"),
            ("table", head_view.as_str(), "protected/year-end"),
            ("maintenance", "#/maintenance", "landed"),
            ("quarantine", "#/tables/app/t/quarantine", HOSTILE[1]),
            ("audit", "#/audit", "many small files"),
        ] {
            scene.go(address, shows).await;
            let wider = page.run("return document.documentElement.scrollWidth - window.innerWidth").await;
            assert!(wider.as_i64().is_some_and(|pixels| pixels <= 0), "{name} on a {place}: {wider}");
            assert_eq!(scene.count("#main img, #main script, #main a[href^=javascript]").await, 0, "{name}");
            page.picture(&format!("{name}-{place}")).await;
        }
    }
    page.sees(HOSTILE[0]).await;
    page.sees("invoiceU+202Efdp.exeU+202C U+200Bend").await;
    let shown = page.run("return document.body.innerText").await;
    for action in ["protect", "untag", "maintain", "verify", "no longer needed"] {
        assert!(shown.as_str().is_some_and(|text| text.contains(action)), "{action}: {shown}");
    }
    assert_ne!(page.run("return document.title").await, "owned");
    let log = page.log().await;
    assert!(!log.contains("Content Security Policy") && !log.contains("Uncaught"), "{log}");
    stop(worker).await;
}
