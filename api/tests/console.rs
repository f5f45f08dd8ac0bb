//! The operators' console in a real browser, on the real binary, while a worker follows its source (long tier): a whole
//! rollback as a person does it, what a reader is not offered, and cells that would like to be more than text.
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

/// SHA-256 of `operator-token` and `reader-token`.
const TOKENS: &str = r#"
[api]
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
        live.site.lakehouse.configure(&format!("{text}{TOKENS}"));
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
        let verbs = page.run("return document.getElementById('main').innerText.match(/\\b(Pause|Resume|Resync|Preview)\\b|^Roll back$/m)");
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
