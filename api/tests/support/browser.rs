//! Debian's Chromium without a window, driven by its own driver: WebDriver is plain HTTP, so no library stands in between.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use testkit::http::send;

const BROWSER: &str = "/usr/bin/chromium";
const DRIVER: &str = "/usr/bin/chromedriver";
/// How long the page may take to show something.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Names the folder for pictures of the page; without it none is kept.
const PICTURES: &str = "LAKEHOUSE_PICTURES";
/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One page in one browser; both end with this.
pub(crate) struct Browser {
    driver: Child,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`, and a line that says why, where there is no browser or nobody has asked for the long tier.
    pub(crate) async fn start() -> Option<Self> {
        if !testkit::tier::long() {
            println!("SKIP console: only in deploy/test --long");
            return None;
        }
        if let Some(missing) = [BROWSER, DRIVER].into_iter().find(|program| !Path::new(program).exists()) {
            println!("SKIP console: no {missing}; it is in Debian's chromium and chromium-driver");
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let driver = Command::new(DRIVER)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the driver starts");
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}"), _profile: profile };
        let wait = async {
            while send("GET", &format!("{}/status", browser.session), "").await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("the driver answers");
        let folder = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,1000",
            &folder,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": BROWSER, "args": arguments},
        }}});
        let made = browser.ask("POST", "/session", wanted).await.unwrap_or_else(|error| panic!("no session: {error}"));
        browser.session += &format!("/session/{}", made["sessionId"].as_str().expect("an id"));
        Some(browser)
    }

    pub(crate) async fn open(&self, uri: &str) {
        self.must("POST", "/url", json!({"url": uri})).await;
    }

    /// A window as wide and high as this, in the page's own pixels; narrower than any real window can be made.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        let order = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.must("POST", "/goog/cdp/execute", order).await;
    }

    /// What the page looks like, kept under this name where somebody wants to look at it.
    pub(crate) async fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os(PICTURES) else { return };
        let encoded = self.must("GET", "/screenshot", Value::Null).await;
        let picture = STANDARD.decode(encoded.as_str().expect("a picture")).expect("base64");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture).expect("the picture is kept");
    }

    /// What a function of this body returns in the page.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.must("POST", "/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Clicks the first element of this XPath, once it is there and takes clicks.
    pub(crate) async fn click(&self, path: &str) {
        self.until(path, async || {
            let element = self.find(path).await?;
            self.ask("POST", &format!("/element/{element}/click"), json!({})).await
        })
        .await;
    }

    /// The button, or what looks like one, of this name.
    pub(crate) async fn press(&self, name: &str) {
        let named = |kind: &str| format!("//{kind}[normalize-space()='{name}' and not(@disabled)]");
        self.click(&format!("({}|{})", named("button"), named("a"))).await;
    }

    /// Types into the field of this name, which was empty.
    pub(crate) async fn write(&self, name: &str, text: &str) {
        let path = format!("//*[@name='{name}']");
        let element = self.until(&path, async || self.find(&path).await).await;
        self.must("POST", &format!("/element/{element}/value"), json!({"text": text})).await;
    }

    /// Waits until the page shows the text.
    pub(crate) async fn sees(&self, text: &str) {
        let script = "return document.body.innerText";
        self.until(text, async || match self.run(script).await.as_str() {
            Some(shown) if shown.contains(text) => Ok(()),
            shown => Err(format!("it shows {}", shown.unwrap_or_default())),
        })
        .await;
    }

    /// Waits until the selector finds nothing in the page.
    pub(crate) async fn loses(&self, selector: &str) {
        let script = format!("return document.querySelectorAll(`{selector}`).length");
        self.until(selector, async || match self.run(&script).await.as_u64() {
            Some(0) => Ok(()),
            found => Err(format!("it finds {found:?}")),
        })
        .await;
    }

    /// What the browser has had to say: errors, and what a policy has kept from the page.
    pub(crate) async fn log(&self) -> String {
        self.must("POST", "/se/log", json!({"type": "browser"})).await.to_string()
    }

    async fn find(&self, path: &str) -> Result<String, String> {
        let found = self.ask("POST", "/element", json!({"using": "xpath", "value": path})).await?;
        found[ELEMENT].as_str().map(str::to_owned).ok_or_else(|| format!("no element: {found}"))
    }

    /// The page draws in its own time, and may draw anew between two calls.
    async fn until<T>(&self, what: &str, mut act: impl AsyncFnMut() -> Result<T, String>) -> T {
        let mut last = String::new();
        let wait = async {
            loop {
                match act().await {
                    Ok(done) => return done,
                    Err(error) => last = error,
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(done) => done,
            Err(_) => panic!("not within {DEADLINE:?}: {what}: {last}"),
        }
    }

    async fn must(&self, method: &str, target: &str, body: Value) -> Value {
        let shown = body.to_string();
        self.ask(method, target, body).await.unwrap_or_else(|error| panic!("{target} {shown}: {error}"))
    }

    async fn ask(&self, method: &str, target: &str, body: Value) -> Result<Value, String> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = send(method, &format!("{}{target}", self.session), &body).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let document: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        match document["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", document["value"]["message"])),
            None => Ok(document["value"].clone()),
        }
    }
}

impl Drop for Browser {
    /// The browser does not outlive its driver: the driver has it started so.
    fn drop(&mut self) {
        self.driver.kill().expect("the driver was running");
        self.driver.wait().expect("the driver has ended");
    }
}
