//! The pages in a real Chromium, as people use them: each story from its beginning to its end, with a look at every page on
//! the way, in light and dark, on a desktop and a phone.

use std::{
    io::BufRead,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element, wd::WebDriverCompatibleCommand};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::Url;
use serde_json::{Value, json};

use crate::support::PATIENCE;

mod account;
mod buyer;
mod operator;
mod order_of_charges;
mod reports;
mod self_hoster;
mod without_scripts;

/// Finds what makes a page unusable for some: <https://github.com/dequelabs/axe-core>, MPL-2.0.
const AXE: &str = include_str!("axe.min.js");

/// A page without the scripts and styles that are kept by the browser has at most so many bytes.
const HEAVIEST_PAGE: usize = 100 * 1024;

struct Driver {
    url: String,
}

impl Driver {
    /// One for all tests of this binary; it ends with it.
    fn get() -> &'static Self {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        DRIVER.get_or_init(|| {
            let (port, started) = std::sync::mpsc::channel();
            // It ends with the thread that started it, which therefore lives as long as it, and reads what it says.
            std::thread::spawn(move || {
                let mut process = Command::new("setpriv")
                    .args(["--pdeathsig", "TERM", "chromedriver", "--port=0"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("setpriv is there");
                for line in std::io::BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok) {
                    if let Some((_, said)) = line.split_once("started successfully on port ") {
                        port.send(said.trim_end_matches('.').to_owned()).unwrap();
                    }
                }
                process.wait().unwrap();
            });
            let port = started
                .recv_timeout(PATIENCE)
                .expect("chromedriver says its port (scripts/setup installs chromium and chromium-driver)");
            Driver { url: format!("http://127.0.0.1:{port}") }
        })
    }
}

/// A command of Chrome's own protocol, or of its driver.
#[derive(Debug)]
struct Chrome {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Chrome {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

/// A person's browser.
pub struct Browser {
    client: Client,
    base: String,
    /// Beginning of the names of its screenshots.
    story: &'static str,
    shots: usize,
    /// What is wrong with pages that were looked at: said together, at the end.
    complaints: Vec<String>,
}

impl Browser {
    pub async fn open(base: &str, story: &'static str) -> Self {
        let this = Self::start(base, story, json!({})).await;
        // Counted from the first page on; see `looked_at`.
        this.devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({ "source": "window.shifted = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) \
                if (!entry.hadRecentInput) window.shifted += entry.value; }).observe({ type: 'layout-shift', buffered: true });" }),
        )
        .await;
        this
    }

    /// The browser of somebody who has scripts turned off, for every page. The driver's own go on working.
    pub async fn open_without_scripts(base: &str, story: &'static str) -> Self {
        Self::start(base, story, json!({ "profile.managed_default_content_settings.javascript": 2 })).await
    }

    async fn start(base: &str, story: &'static str, preferences: Value) -> Self {
        let capabilities = json!({
            "goog:chromeOptions": { "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
                "--window-size=1280,900",
            ], "prefs": preferences },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&Driver::get().url).await.unwrap();
        Self { client, base: base.to_owned(), story, shots: 0, complaints: Vec::new() }
    }

    fn expect(&mut self, good: bool, complaint: impl FnOnce() -> String) {
        if !good {
            self.complaints.push(complaint());
        }
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(Chrome { path: "goog/cdp/execute", body }).await.unwrap()
    }

    pub async fn go(&self, path: &str) {
        let started = Instant::now();
        self.client.goto(&format!("{}{path}", self.base)).await.unwrap();
        // Browsers have six connections for a host: pages that were left and hold theirs keep the seventh waiting.
        assert!(started.elapsed() < Duration::from_secs(20), "{path} came after {:?}", started.elapsed());
    }

    pub async fn path(&self) -> String {
        let url = self.client.current_url().await.unwrap();
        format!("{}{}", url.path(), url.query().map(|query| format!("?{query}")).unwrap_or_default())
    }

    pub async fn find(&self, css: &str) -> Element {
        match self.client.wait().at_most(Duration::from_secs(10)).for_element(Locator::Css(css)).await {
            Ok(element) => element,
            Err(error) => panic!("{css} is not on {}: {error}\n{}", self.path().await, self.text().await),
        }
    }

    /// What an element says. One that is renewed at this very moment is looked for again.
    pub async fn text_of(&self, css: &str) -> String {
        let started = Instant::now();
        loop {
            match self.find(css).await.text().await {
                Ok(text) => return text,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{css}: {error}"),
            }
        }
    }

    /// Types into a field. One that is renewed at this very moment is looked for again.
    pub async fn fill(&self, css: &str, text: &str) {
        let started = Instant::now();
        loop {
            let element = self.find(css).await;
            let typed = match element.clear().await {
                Ok(()) => element.send_keys(text).await,
                Err(error) => Err(error),
            };
            let Err(error) = typed else { return };
            assert!(started.elapsed() < Duration::from_secs(10), "{css} on {}: {error}", self.path().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Presses what says this: a button or a link. What is renewed at this very moment is looked for again.
    pub async fn press(&self, words: &str) {
        self.press_at(words, &format!("//*[self::button or self::a][normalize-space()=\"{words}\"]")).await;
    }

    /// Opens what is folded up under these words.
    pub async fn press_summary(&self, words: &str) {
        self.press_at(words, &format!("//summary[normalize-space()=\"{words}\"]")).await;
    }

    async fn press_at(&self, words: &str, xpath: &str) {
        let started = Instant::now();
        loop {
            let pressed = match self.client.find(Locator::XPath(xpath)).await {
                Ok(element) => element.click().await,
                Err(error) => Err(error),
            };
            let Err(error) = pressed else { return };
            if started.elapsed() > Duration::from_secs(10) {
                panic!("no '{words}' on {}: {error}\n{}", self.path().await, self.text().await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What stands on the page.
    pub async fn text(&self) -> String {
        let text = self.client.execute("return document.body.innerText", Vec::new()).await.unwrap();
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until something stands on the page: nobody loads it again.
    pub async fn until(&self, words: &str) -> String {
        let started = Instant::now();
        loop {
            let text = self.text().await;
            if text.contains(words) {
                return text;
            }
            let path = self.path().await;
            assert!(started.elapsed() < PATIENCE, "'{words}' does not come to {path}:\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Looks at the page as everybody does: it is not too heavy, nothing on it moves by itself, nobody is kept from using it,
    /// the browser has nothing to complain of, nothing sticks out on a phone; and keeps a picture of each.
    pub async fn looked_at(&mut self, name: &str) {
        let path = self.path().await;
        let text = self.text().await;
        assert!(text.len() > 40, "{path} says nothing: {text}");
        let shifted = self.client.execute("return window.shifted", Vec::new()).await.unwrap();
        self.expect(shifted.as_f64().unwrap_or(1.0) < 0.05, || format!("{path} moves by itself: {shifted}"));
        let source = self.client.source().await.unwrap();
        self.expect(source.len() < HEAVIEST_PAGE, || format!("{path} has {} bytes", source.len()));
        self.shots += 1;
        for (theme, width, device) in
            [("light", 1280, "desktop"), ("dark", 1280, "desktop"), ("light", 390, "phone"), ("dark", 390, "phone")]
        {
            let features = json!([{ "name": "prefers-color-scheme", "value": theme }]);
            self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
            let metrics = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600 });
            self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
            let sticks_out = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            let sticks_out = self.client.execute(sticks_out, Vec::new()).await.unwrap();
            self.expect(sticks_out.as_i64().unwrap_or(1) <= 0, || {
                format!("{path} is {sticks_out} pixels too wide for {width}")
            });
            // Colours are of a theme, and the order of things is of a width: two looks see all four.
            if (theme == "light") == (device == "desktop") {
                self.axe(&path, theme, device).await;
            }
            let file = format!("{}-{:02}-{name}-{device}-{theme}.png", self.story, self.shots);
            self.shoot(json!({ "format": "png" }), &file).await;
            if (theme, device) == ("light", "desktop") {
                // Small enough for the documentation: `make screenshots`.
                let file = format!("{}-{name}.webp", self.story);
                self.shoot(json!({ "format": "webp", "quality": 60 }), &file).await;
            }
        }
        self.devtools("Emulation.clearDeviceMetricsOverride", json!({})).await;
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [] })).await;
        self.nothing_to_complain_of(&path).await;
    }

    /// Keeps a picture of the whole page.
    async fn shoot(&self, mut how: Value, file: &str) {
        how["captureBeyondViewport"] = json!(true);
        how["optimizeForSpeed"] = json!(true);
        let shot = self.devtools("Page.captureScreenshot", how).await;
        let data = shot["data"].as_str().unwrap_or_default();
        let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, data).unwrap();
        std::fs::write(screenshots().join(file), bytes).unwrap();
    }

    async fn axe(&mut self, path: &str, theme: &str, device: &str) {
        let loaded = self.client.execute("return Boolean(window.axe)", Vec::new()).await.unwrap();
        if loaded != json!(true) {
            self.client.execute(AXE, Vec::new()).await.unwrap();
        }
        let run = "const done = arguments[0]; axe.run(document, { resultTypes: ['violations'] }).then((found) => done(found.violations\
            .map((one) => ({ id: one.id, impact: one.impact, help: one.help, where: one.nodes.map((node) => node.html + ' ' + \
            node.any.map((check) => check.message).join(' ')) }))), (error) => done([{ id: String(error) }]))";
        let found = self.client.execute_async(run, Vec::new()).await.unwrap();
        let found = found.as_array().unwrap();
        self.expect(found.is_empty(), || format!("{path} ({theme}, {device}): {found:#?}"));
    }

    /// Errors in the console, among them everything that the content security policy kept from being loaded.
    async fn nothing_to_complain_of(&mut self, path: &str) {
        let entries =
            self.client.issue_cmd(Chrome { path: "se/log", body: json!({ "type": "browser" }) }).await.unwrap();
        let errors: Vec<&Value> = entries
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["level"] == "SEVERE" && expected(entry).is_none())
            .collect();
        self.expect(errors.is_empty(), || format!("{path}: {errors:#?}"));
    }

    /// Closes it, and says what was wrong with the pages.
    pub async fn close(self) {
        self.client.close().await.unwrap();
        assert!(self.complaints.is_empty(), "{}", self.complaints.join("\n"));
    }
}

/// What a browser reports of an answer that says why something was refused: the page itself is that answer.
fn expected(entry: &Value) -> Option<()> {
    let message = entry["message"].as_str()?;
    ["422", "409", "404", "401", "410", "429"]
        .iter()
        .any(|status| message.contains(&format!("responded with a status of {status}")))
        .then_some(())
}

/// Where the pictures are kept: not in the tree.
fn screenshots() -> PathBuf {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/screenshots"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
