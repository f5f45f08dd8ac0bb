//! Schemathesis makes requests of the served document, right and wrong ones, as each role (long tier): no answer is a fault
//! of the server or one that the document does not know, and none comes without a token.

use std::time::Duration;

use crate::http::{Service, tokens};
use crate::support::lake;
use serde_json::Value;
use testkit::tier;
use tokio::process::Command;
use tokio::time::timeout;

/// Not those that judge which requests are refused: what a schema cannot say of them is refused, too.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,ignored_auth";
/// Requests of one operation in one round, at most.
const OF_ONE: &str = "150";
/// Longer than a round takes.
const DEADLINE: Duration = Duration::from_secs(1_800);

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_other_than_the_document_says() {
    let wanted = tier::size("LAKEHOUSE_SCHEMATHESIS", 0, 20_000);
    if wanted == 0 {
        println!("SKIP schemathesis: only in deploy/test --long");
        return;
    }
    let Some(python) = std::env::var_os("LAKEHOUSE_SCHEMATHESIS_PYTHON") else {
        println!("SKIP schemathesis: deploy/test --long has not found what it needs");
        return;
    };
    let (mut made, mut seed) = (0, tier::seed());
    while made < wanted {
        for role in ["reader", "operator", "admin"] {
            // A lake of its own: what one has rolled back or left to be copied anew is in the way of the next.
            let installation = lake::installation_with(&tokens(), &[]).await;
            let service = Service::start(&installation).await;
            let run = Command::new(&python)
                .args(["-m", "schemathesis.cli", "run", &format!("{}/v1/openapi.json", service.uri)])
                .args(["--url", &service.uri, "--header", &format!("Authorization: Bearer {role}-token")])
                .args(["--checks", CHECKS, "--max-examples", OF_ONE, "--seed", &seed.to_string()])
                // Pages for people.
                .args(["--exclude-path-regex", "^/console"])
                .args(["--suppress-health-check", "all", "--generation-database", "none", "--no-color"])
                .args(["--report-json-path", "report.json"])
                .current_dir(installation.path())
                .kill_on_drop(true)
                .output();
            let run = timeout(DEADLINE, run).await.expect("a round ends").expect("schemathesis starts");
            let told = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
            assert!(run.status.success(), "{role}, seed {seed}: {told}");
            let report = std::fs::read(installation.path().join("report.json")).expect("a report");
            let report: Value = serde_json::from_slice(&report).expect("JSON");
            let generated = report["test_cases"]["generated"].as_u64().unwrap_or_default();
            assert!(generated > 0, "{role}, seed {seed}: {told}");
            made += generated;
        }
        seed += 1;
    }
    println!("schemathesis: {made} requests");
}
