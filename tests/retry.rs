//! From a lab to a client that survives a reset, as README shows it.

use routecause::lab::Lab;

/// The client under test.
async fn fetch(client: &reqwest::Client, url: &str, tries: u32) -> reqwest::Result<String> {
    for _ in 1..tries {
        if let Ok(answer) = client.get(url).send().await {
            return answer.text().await;
        }
    }
    client.get(url).send().await?.text().await
}

fn client(lab: &Lab) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(lab.ca_pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([ca]);
    let proxy = reqwest::Proxy::all(lab.proxy_url()).unwrap();
    client.proxy(proxy).build().unwrap()
}

#[tokio::test]
async fn a_client_that_tries_again_survives_a_reset() {
    let lab = Lab::start().await.unwrap();
    let resets = lab
        .fault("api.lab.test: reset at client_hello first 1")
        .unwrap();
    let answer = fetch(&client(&lab), "https://api.lab.test/", 2).await; // 1 fails
    assert_eq!(answer.unwrap(), "GET / of api.lab.test by https\n");
    assert_eq!(resets.hits(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_meets_it() {
    let lab = Lab::start().await.unwrap();
    lab.fault("api.lab.test: reset at client_hello first 1")
        .unwrap();
    let answer = fetch(&client(&lab), "https://api.lab.test/", 1).await;
    assert!(answer.unwrap_err().is_connect());
    let records = lab.records_when(1).await;
    assert_eq!(
        records[0].error_type.as_deref(),
        Some("tls.reset_after_client_hello")
    );
}
