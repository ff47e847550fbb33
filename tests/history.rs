//! Records that outlast the process.

#![cfg(feature = "history")]

mod support;

use support::admin::{self, ask, get};
use support::origin::Origin;
use support::{DIRECT, Proxy, check, wire};

#[test]
fn a_record_of_an_earlier_process_is_told_with_its_timeline_as_one_in_memory_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.db");
    let start = || {
        let starting = Proxy::under(DIRECT)
            .arg("--history")
            .arg(file.to_str().unwrap());
        let proxy = admin::with_admin(starting).start();
        let at = admin::address(&proxy);
        (proxy, at)
    };
    let (proxy, at) = start();
    let client = proxy.connect();
    let nowhere = Origin::nowhere();
    wire::send(&client, format!("CONNECT {nowhere} HTTP/1.1\r\n\r\n"));
    assert_eq!(wire::status(&wire::read_head(&client)), 502);
    let record = &proxy.records(1)[0];
    let id = record["event.id"].as_str().unwrap();
    let path = format!("/v1/records/{id}");
    let of_memory = get(at, &path);
    let page_of_memory = ask(at, "GET", &format!("/records/{id}"), "", "").2;
    drop(client);
    proxy.stop();

    let (proxy, at) = start();
    let told = get(at, &path);
    assert_eq!(told, of_memory);
    let timeline = told["timeline"].as_array().unwrap();
    check!(timeline.last().unwrap(), "phase": "connect", "is_cut": true);
    let (status, _, page) = ask(at, "GET", &format!("/records/{id}"), "", "");
    assert_eq!(status, 200);
    assert!(page.contains("connect.refused") && page.contains("then it failed"));
    assert_eq!(page, page_of_memory);
    let missing = "/records/01a1fee3-45a3-7398-82cb-c88b00e3b995";
    let (status, _, page) = ask(at, "GET", missing, "", "");
    assert_eq!(status, 404);
    assert!(page.contains("in memory or in the history"), "{page}");
    drop(proxy);
}
