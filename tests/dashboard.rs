//! The dashboard in a browser: what a person sees, presses and is told. Screenshots are left in `target/screenshots`.

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};
use support::admin;
use support::origin::Origin;
use support::{Proxy, needs, wire};

const POLICY: &str = "version: 1
dns: {hosts: {good.test: [127.0.0.1], bad.test: [127.0.0.1], cut.test: [127.0.0.1]}}
upstreams:
  corp: {url: \"http://CORP\", health: {max_fails: 1, fail_timeout: 60s}}
faults: {gate: {at: connect, do: refuse}}
rules:
  - {name: closed, match: {host: closed.test}, block: {reason: \"not from here\"}}
  - {name: shadowed, match: {host: closed.test}, direct: true}
  - {name: staged, match: {host: cut.test}, fault: gate, direct: true}
  - {name: corp, match: {host: good.test}, via: \"corp|direct\"}
default: {direct: true}
";

/// What is asked of every page: names for what is read aloud, one heading, an order of headings, labels, and contrast.
const AUDIT: &str = r#"
const found = [];
const named = (e) => (e.getAttribute("aria-label") || e.textContent || "").trim() !== "";
if (!document.documentElement.lang) found.push("no language");
if (!document.title.includes("Routecause")) found.push("no title");
if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
for (const name of ["header", "nav", "main"]) if (!document.querySelector(name)) found.push("no " + name);
let level = 1;
for (const heading of document.querySelectorAll("h1, h2, h3")) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) found.push("a jump to " + heading.tagName);
  level = next;
}
for (const e of document.querySelectorAll("a, button, [role=img], [role=region]")) if (!named(e)) found.push("no name: " + e.outerHTML);
for (const e of document.querySelectorAll("input")) if (!e.labels.length) found.push("no label: " + e.outerHTML);
for (const e of document.querySelectorAll("svg")) {
  if (!e.closest("[role=img], [role=presentation]")) found.push("a chart without a role");
}
for (const e of document.querySelectorAll("th")) if (!e.scope) found.push("a th without scope");
const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
if (new Set(ids).size !== ids.length) found.push("an id twice");
if (document.documentElement.scrollWidth > window.innerWidth + 1) found.push("wider than the window");
const parse = (text) => { const m = text.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
const light = (c) => { const f = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n = walker.nextNode(); n; n = walker.nextNode()) {
  const e = n.parentElement;
  if (!n.textContent.trim() || !e.getClientRects().length || e.closest("svg, script, .visually-hidden")) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(1)}: ${n.textContent.trim()}`);
}
return found;
"#;

/// A browser, and the driver that it hangs on.
struct Browser {
    client: Client,
    driver: Child,
    at: SocketAddr,
    session: String,
}

impl Browser {
    async fn open(profile: &Path) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some(rest) = line.split("started successfully on port ").nth(1) {
                break rest.trim_end_matches('.').parse::<u16>().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let wanted = json!({
            "goog:chromeOptions": {"args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
                format!("--user-data-dir={}", profile.display()), "--window-size=1280,900",
            ]},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let client = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(wanted.as_object().unwrap().clone())
            .connect(&format!("http://{at}"))
            .await
            .unwrap();
        let session = client.session_id().await.unwrap().unwrap();
        Self {
            client,
            driver,
            at,
            session,
        }
    }

    /// Asks the driver for what is no part of the standard.
    fn ask(&self, path: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{path}", self.session);
        let (status, answer) = admin::send(self.at, "POST", &path, "", body);
        assert_eq!(status, 200, "{path}: {answer}");
        answer["value"].clone()
    }

    fn cdp(&self, command: &str, params: &Value) -> Value {
        self.ask(
            "goog/cdp/execute",
            &json!({"cmd": command, "params": params}),
        )
    }

    /// Keeps a picture of the whole page.
    fn shoot(&self, name: &str) {
        let shot = self.cdp(
            "Page.captureScreenshot",
            &json!({"captureBeyondViewport": true}),
        );
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), bytes.unwrap()).unwrap();
    }

    fn look(&self, scheme: &str, width: u32) {
        let feature = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.cdp("Emulation.setEmulatedMedia", &json!({"features": feature}));
        let size =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.cdp("Emulation.setDeviceMetricsOverride", &size);
    }

    async fn audit(&self, what: &str) {
        let found = self.client.execute(AUDIT, vec![]).await.unwrap();
        assert_eq!(found, json!([]), "{what}");
    }

    /// What the pages complained of.
    fn complaints(&self) -> Vec<String> {
        let log = self.ask("se/log", &json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What an element says, once it is there. By script, since a live page may replace it between two questions.
    async fn text(&self, selector: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.innerText";
        let deadline = Instant::now() + support::SOON;
        loop {
            let asked = self.client.execute(script, vec![json!(selector)]).await;
            // An error is that of a page that is just being left.
            if let Ok(Value::String(text)) = asked {
                return text;
            }
            assert!(Instant::now() < deadline, "{selector} is not there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Presses what a selector finds first. What lives may be put there anew between the look and the press.
    async fn press(&self, selector: &str) {
        let deadline = Instant::now() + support::SOON;
        loop {
            let found = self.client.find(Locator::Css(selector)).await;
            let pressed = match found {
                Ok(found) => found.click().await,
                Err(error) => Err(error),
            };
            let Err(error) = pressed else { return };
            assert!(Instant::now() < deadline, "{selector}: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes into a field, over what stands there.
    async fn fill(&self, selector: &str, text: &str) {
        let field = self.client.find(Locator::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    async fn close(mut self) {
        self.client.clone().close().await.unwrap();
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }
}

/// Asks for a URL; the status.
fn fetch(proxy: &Proxy, host: &str, port: u16) -> u16 {
    let client = proxy.connect();
    let agent = "<img src=x onerror=alert(1)>";
    wire::send(
        &client,
        format!(
            "GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\nuser-agent: {agent}\r\nconnection: close\r\n\r\n"
        ),
    );
    wire::status(&wire::read_answer(&client).0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_what_fails_and_why() {
    if !needs::has("chromium") || !needs::has("chromedriver") {
        return;
    }
    let policy = POLICY.replace("CORP", &Origin::nowhere().to_string());
    let proxy = admin::with_admin(Proxy::under(&policy)).start();
    let at = admin::address(&proxy);
    let good = || {
        Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            .address
            .port()
    };
    for _ in 0..5 {
        assert_eq!(fetch(&proxy, "good.test", good()), 200);
    }
    assert_eq!(fetch(&proxy, "closed.test", 80), 403);
    assert_eq!(fetch(&proxy, "cut.test", 80), 502);
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::open(profile.path()).await;
    let client = browser.client.clone();
    let open = async |path: &str| client.goto(&format!("http://{at}{path}")).await.unwrap();
    browser.look("light", 1280);

    open("/").await;
    assert_eq!(browser.text("#live[data-state=on]").await, "live");
    let begun = Instant::now();
    let nowhere = Origin::nowhere().port();
    assert_eq!(fetch(&proxy, "bad.test", nowhere), 502);
    let mut latest = String::new();
    while !latest.starts_with("bad.test") {
        assert!(begun.elapsed() < support::SOON, "{latest}");
        latest = browser.text(".failures li:first-child strong").await;
    }
    let first = browser.text(".failures li:first-child").await;
    assert!(
        first.contains("connect.refused") && first.contains("nothing listens there"),
        "{first}"
    );
    browser.audit("now").await;
    browser.shoot("now");

    open("/failures").await;
    assert!(
        browser
            .text("[data-live=troubles]")
            .await
            .contains("closed.test")
    );
    browser.fill("input[name=cause]", "connect").await;
    browser.press("form.filter button").await;
    // The page that was there before is left some time behind the click.
    let begun = Instant::now();
    let mut rows = browser.text("[data-live=records]").await;
    while rows.contains("closed.test") {
        assert!(begun.elapsed() < support::SOON, "{rows}");
        rows = browser.text("[data-live=records]").await;
    }
    assert!(rows.contains("bad.test"), "{rows}");
    browser.audit("failures, filtered").await;
    open("/failures").await;
    browser.audit("failures").await;
    browser.shoot("failures");

    let record = &admin::get(at, "/v1/records?host=bad.test")["records"][0];
    let id = record["event.id"].as_str().unwrap();
    open(&format!("/records/{id}")).await;
    assert_eq!(
        browser.text(".copy code").await,
        format!("routecause explain {id}")
    );
    assert!(
        browser
            .text("h1")
            .await
            .starts_with(&format!("bad.test:{nowhere}"))
    );
    assert!(browser.text(".phases").await.contains("then it failed"));
    let facts = browser.text(".pairs.wide").await;
    assert!(facts.contains("<img src=x onerror=alert(1)>"), "{facts}");
    assert!(
        client.find(Locator::Css("img")).await.is_err(),
        "what a stranger wrote became markup"
    );
    browser.audit("record").await;
    browser.shoot("record");

    open("/policy").await;
    browser
        .fill("input[name=target]", "http://closed.test/")
        .await;
    browser.press("form.filter button").await;
    let told = browser.text(".explanation").await;
    assert!(told.contains("by closed"), "{told}");
    let rules = browser.text("[data-live=rules]").await;
    assert!(
        rules.contains("can never decide") && rules.contains("never hit"),
        "{rules}"
    );
    browser.audit("policy").await;
    browser.shoot("policy");

    open("/upstreams").await;
    assert_eq!(browser.text(".card h2 .state").await, "down");
    browser.press("button[data-post]").await;
    browser.text("button[data-post$='enable']").await;
    assert_eq!(browser.text(".card h2 .state").await, "drained");
    browser.audit("upstreams").await;
    browser.shoot("upstreams");

    open("/lab").await;
    assert!(browser.text("[data-live=faults]").await.contains("gate"));
    browser.audit("lab").await;
    browser.shoot("lab");

    open("/records/none").await;
    assert_eq!(browser.text("h1").await, "No such record");
    for (scheme, width) in [("dark", 1280), ("light", 390), ("dark", 390)] {
        browser.look(scheme, width);
        for page in [
            "/",
            "/failures",
            "/policy",
            "/upstreams",
            "/lab",
            &format!("/records/{}", record["event.id"].as_str().unwrap()),
        ] {
            open(page).await;
            browser.audit(&format!("{page}, {scheme}, {width}")).await;
            let name = match page.split('/').nth(1).unwrap() {
                "" => "now",
                name => name,
            };
            browser.shoot(&format!("{name}-{scheme}-{width}"));
        }
    }
    let complaints = browser.complaints();
    let complaints: Vec<_> = complaints
        .iter()
        .filter(|line| !line.contains("404 (Not Found)"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_adds_and_removes_faults_of_a_lab() {
    if !needs::has("chromium") || !needs::has("chromedriver") {
        return;
    }
    let lab = Proxy::lab().start();
    let greeting = lab.records(1).remove(0);
    let url = greeting["admin_url"].as_str().unwrap().to_owned();
    let at: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::open(profile.path()).await;
    let client = browser.client.clone();
    browser.look("light", 1280);
    client.goto(&format!("{url}/lab")).await.unwrap();
    let add = async |fault: &str| {
        browser.fill("input[name=fault]", fault).await;
        browser.press("form[data-add] button").await;
    };
    // What is no fault is told with its place, and what was written stays.
    add("api.lab.test: rest at client_hello").await;
    let wrong = browser.text("form[data-add] .wrong:not([hidden])").await;
    assert!(wrong.contains("rest"), "{wrong}");
    browser.audit("lab, a mistake").await;
    browser.shoot("lab-mistake");

    add("api.lab.test: refuse at connect").await;
    let row = browser.text("[data-live=bench] tbody tr").await;
    assert!(
        row.contains("api.lab.test") && row.contains("refuse"),
        "{row}"
    );
    add("other.lab.test: status 503 at request").await;
    browser
        .text("[data-live=bench] tbody tr:nth-child(2)")
        .await;
    assert_eq!(
        admin::get(at, "/v1/faults")["faults"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(fetch(&lab, "api.lab.test", 80), 502);
    let begun = Instant::now();
    while !browser
        .text("[data-live=bench] tbody tr")
        .await
        .ends_with("Remove")
        || !browser
            .text("[data-live=bench] tbody td.number:nth-child(4)")
            .await
            .contains('1')
    {
        assert!(begun.elapsed() < support::SOON);
    }
    browser.audit("lab, at work").await;
    browser.shoot("lab-bench");

    // It stands on the first page with its cause.
    client.goto(&format!("{url}/")).await.unwrap();
    let first = browser.text(".failures li:first-child").await;
    assert!(
        first.contains("api.lab.test") && first.contains("connect.refused"),
        "{first}"
    );

    client.goto(&format!("{url}/lab")).await.unwrap();
    browser
        .press("[data-live=bench] tbody tr:first-child button")
        .await;
    let begun = Instant::now();
    while browser
        .text("[data-live=bench]")
        .await
        .contains("api.lab.test")
    {
        assert!(begun.elapsed() < support::SOON);
    }
    assert_eq!(fetch(&lab, "api.lab.test", 80), 200);
    browser.press("[data-live=bench] p button").await;
    browser.text("[data-live=bench] .nothing").await;
    assert_eq!(admin::get(at, "/v1/faults"), json!({"faults": []}));
    for (scheme, width) in [("dark", 1280), ("light", 390)] {
        browser.look(scheme, width);
        browser.audit(&format!("lab, {scheme}, {width}")).await;
    }

    // A page of another site adds nothing.
    let fault = json!({"fault": "api.lab.test: refuse at connect"});
    let (status, _) = admin::send(
        at,
        "POST",
        "/v1/faults",
        "origin: http://other.test\r\n",
        &fault,
    );
    assert_eq!(status, 403);
    let (status, _) = admin::send(
        at,
        "DELETE",
        "/v1/faults",
        "sec-fetch-site: cross-site\r\n",
        &json!({}),
    );
    assert_eq!(status, 403);
    assert_eq!(admin::get(at, "/v1/faults"), json!({"faults": []}));
    browser.close().await;
}
