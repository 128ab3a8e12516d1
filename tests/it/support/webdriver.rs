//! Drives a real browser in tests: headless Chromium, through chromedriver and the WebDriver protocol.

use base64::Engine;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Keys that are not characters, in the encoding of WebDriver.
pub const ESCAPE: char = '\u{e00c}';
pub const TAB: char = '\u{e004}';

/// A running chromedriver; dropping it also ends its browsers.
pub struct Driver {
    child: Child,
    url: String,
    agent: ureq::Agent,
}

impl Driver {
    /// Starts chromedriver; a test that uses it begins with `needs!(BROWSER)`.
    pub fn start() -> Self {
        let spawn = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawn.unwrap_or_else(|e| panic!("chromedriver: {e}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.by_ref().find_map(|line| {
            let line = line.unwrap_or_default();
            line.split_once("started successfully on port ").map(|(_, p)| p.trim_end_matches('.').to_string())
        });
        // chromedriver would block if its later output filled the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(90)))
            .build();
        Self {
            child,
            url: format!("http://127.0.0.1:{}", port.expect("the port of chromedriver")),
            agent: agent.into(),
        }
    }

    /// Opens a window of this size with a profile of its own.
    pub fn open(&self, width: u32, height: u32) -> Browser<'_> {
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--force-device-scale-factor=1",
            &format!("--window-size={width},{height}"),
        ];
        let options = json!({ "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "WARNING" },
        } } });
        let made = self.ask("POST", "/session", Some(wanted));
        let id = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}")).to_string();
        Browser { driver: self, path: format!("/session/{id}") }
    }

    /// Sends a request and returns the `value` of the response; panics if the response is an error.
    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let url = format!("{}{path}", self.url);
        let reply = match (method, body) {
            ("POST", body) => {
                let request = self.agent.post(&url).header("content-type", "application/json");
                request.send(body.unwrap_or(json!({})).to_string())
            }
            ("DELETE", _) => self.agent.delete(&url).call(),
            _ => self.agent.get(&url).call(),
        };
        let mut reply = reply.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let text = reply.body_mut().with_config().limit(64 << 20).read_to_string().unwrap();
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{method} {path}: {e}: {text}"));
        assert!(said["value"]["error"].is_null(), "{method} {path}: {}", said["value"]);
        said["value"].clone()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.agent.get(format!("{}/shutdown", self.url)).call();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A browser window with a profile of its own.
pub struct Browser<'a> {
    driver: &'a Driver,
    path: String,
}

impl Browser<'_> {
    fn post(&self, path: &str, body: Value) -> Value {
        self.driver.ask("POST", &format!("{}{path}", self.path), Some(body))
    }

    pub fn go(&self, url: &str) {
        self.post("/url", json!({ "url": url }));
    }

    /// Evaluates a JavaScript expression and returns its value.
    pub fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression};"), json!([]))
    }

    pub fn run(&self, script: &str, arguments: Value) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": arguments }))
    }

    /// Runs a script that calls its last argument when it is done.
    pub fn run_async(&self, script: &str) -> Value {
        self.post("/timeouts", json!({ "script": 60_000 }));
        self.post("/execute/async", json!({ "script": script, "args": [] }))
    }

    /// Waits until a JavaScript expression is true; panics after 30 seconds.
    pub fn until(&self, expression: &str) {
        let began = Instant::now();
        while self.value(&format!("Boolean({expression})")) != true {
            if began.elapsed() > Duration::from_secs(30) {
                let page = self.value("document.body.innerText");
                panic!("never: {expression}; the page says: {page}; its log: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Presses keys one after the other in the element that has the focus.
    pub fn press(&self, keys: &str) {
        let strokes = keys.chars().flat_map(|key| {
            let key = key.to_string();
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        });
        let actions = json!([{ "type": "key", "id": "keys", "actions": strokes.collect::<Vec<_>>() }]);
        self.post("/actions", json!({ "actions": actions }));
    }

    /// Clicks the middle of an element.
    pub fn click(&self, selector: &str) {
        let found = self.post("/element", json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().and_then(|o| o.values().next()).and_then(Value::as_str).unwrap().to_string();
        self.post(&format!("/element/{id}/click"), json!({}));
    }

    /// Sends a command of the Chrome DevTools Protocol through chromedriver.
    fn cdp(&self, command: &str, parameters: Value) {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters }));
    }

    pub fn dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.cdp("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Emulates a phone's screen with touch.
    pub fn phone(&self) {
        let metrics = json!({ "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true });
        self.cdp("Emulation.setDeviceMetricsOverride", metrics);
        self.cdp("Emulation.setTouchEmulationEnabled", json!({ "enabled": true }));
    }

    /// Returns the warnings and errors of the browser's console, one per line.
    pub fn log(&self) -> String {
        let entries = self.post("/se/log", json!({ "type": "browser" }));
        let lines = entries.as_array().into_iter().flatten().filter_map(|e| e["message"].as_str().map(String::from));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Saves a screenshot of the window if `FT_SCREENSHOTS` names a folder for them.
    pub fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("FT_SCREENSHOTS") else { return };
        // Wait until colour transitions have ended.
        std::thread::sleep(Duration::from_millis(400));
        let data = self.driver.ask("GET", &format!("{}/screenshot", self.path), None);
        let bytes = base64::engine::general_purpose::STANDARD.decode(data.as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.driver.ask("DELETE", &self.path, None);
        }
    }
}
