//! The exchange on real processes: a client that trades at random while every server is killed in turn, and the front end.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::cli::{Run, quorate};

mod support;

async fn exchange(cluster: &Cluster, words: &[&str]) -> Run {
    let servers = cluster.urls().join(",");
    let words = [&["exchange"], words, &["--timeout", "20s", "--servers", &servers]].concat();
    quorate(words).await
}

/// Waits until 200 more commands were applied.
async fn traded_on(cluster: &Cluster) {
    let mut begin = None;
    cluster
        .until("they trade on", async || {
            let status = cluster.status(&cluster.primary().await).await?;
            let now = status["revision"].as_u64().ok_or_else(|| status.to_string())?;
            let begin = *begin.get_or_insert(now);
            if now >= begin + 200 { Ok(()) } else { Err(format!("from revision {begin} to {now}")) }
        })
        .await;
}

#[tokio::test]
async fn traders_and_the_clusters_log_agree_while_servers_are_killed() {
    let cluster = Cluster::start(3).await;
    let traders = ["on", "off"].map(|cache| {
        let words = ["trade", "--seconds", "20", "--json", "--cache", cache];
        let cluster = &cluster;
        async move { exchange(cluster, &words).await }
    });
    let [first, second] = traders;
    let kills = async {
        for name in cluster.names() {
            traded_on(&cluster).await;
            cluster.kill9(&name);
            traded_on(&cluster).await;
            cluster.restart(&name).await;
        }
    };
    let (first, second, ()) = tokio::join!(first, second, kills);
    let mut carried_out = 0;
    for trader in [first, second] {
        let told = trader.expect(0).json();
        assert_eq!(told["differences"], 0, "{told}");
        assert!(told["orders"].as_u64().unwrap() > 100, "{told}");
        carried_out += told["orders"].as_u64().unwrap();
    }
    cluster.equal_hashes().await;

    // No gap in the numbers, and nothing that was not bought or sold.
    let (mut orders, mut since) = (Vec::new(), Some(0));
    while let Some(from) = since {
        let page =
            exchange(&cluster, &["orders", "--json", "--limit", "1000", "--since", &from.to_string()]).await;
        let page = page.expect(0).json();
        orders.extend(page["orders"].as_array().unwrap().clone());
        since = page["next"].as_u64();
    }
    assert!(orders.len() as u64 >= carried_out);
    assert!(orders.iter().zip(0..).all(|(order, number)| order["number"] == number), "a gap");
    let catalog = exchange(&cluster, &["catalog", "--json"]).await.expect(0).json();
    for stock in catalog["stocks"].as_array().unwrap() {
        let of = |side: &str| -> u64 {
            let own = |order: &&Value| order["stock"] == stock["name"] && order["side"] == side;
            orders.iter().filter(own).map(|order| order["quantity"].as_u64().unwrap()).sum()
        };
        assert_eq!(100 + of("sell") - of("buy"), stock["quantity"].as_u64().unwrap(), "{stock}");
        assert_eq!(of("sell") + of("buy"), stock["volume"].as_u64().unwrap(), "{stock}");
    }
}

/// `quorate exchange front`, killed at the end.
struct Front {
    child: Child,
    url: String,
}

impl Front {
    async fn start(cluster: &Cluster, flags: &[&str]) -> Self {
        let port = support::process::Port::reserve();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args([
            "exchange",
            "front",
            "--listen",
            &port.address(),
            "--servers",
            &cluster.urls().join(","),
        ]);
        let child = command.args(flags).stderr(Stdio::null()).spawn().expect("quorate can be run");
        let front = Self { child, url: format!("http://{}", port.address()) };
        let health = format!("{}/healthz", front.url);
        cluster.until("the front end answers", async || cluster.http.ok(&health).await).await;
        front
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_front_end_serves_from_its_cache_and_is_told_of_changes() {
    let cluster = Cluster::start(3).await;
    let front = Front::start(&cluster, &[]).await;
    let legacy = Front::start(&cluster, &["--legacy-codes", "--cache", "off"]).await;
    let stock = format!("{}/stocks/GameStart", front.url);
    assert_eq!(cluster.http.json(&stock).await.unwrap()["quantity"], 100);
    let cache = format!("{}/cache", front.url);
    cluster
        .until("look-ups are answered from the cache", async || {
            cluster.http.json(&stock).await?;
            let told = cluster.http.json(&cache).await?;
            if told["hits"].as_u64() > Some(0) { Ok(()) } else { Err(told.to_string()) }
        })
        .await;
    // Bought elsewhere.
    let order = exchange(&cluster, &["order", "buy", "GameStart", "3", "--account", "ada"]).await.expect(0);
    assert_eq!(order.stdout, "0\n");
    cluster
        .until("the change is pushed", async || {
            let stock = cluster.http.json(&stock).await?;
            if stock["quantity"] == 97 { Ok(()) } else { Err(stock.to_string()) }
        })
        .await;
    let order = json!({"stock": "GameStart", "side": "buy", "quantity": 7, "client": "bob"});
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |front: &Front, body: &Value| -> (u16, Value) {
        let answer = client.post(format!("{}/orders", front.url)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let (status, ordered) = post(&front, &order).await;
    assert_eq!(
        (status, &ordered["number"], &ordered["price"]),
        (200, &json!(1), &json!(10_000)),
        "{ordered}"
    );
    let logged = cluster.http.json(&format!("{}/orders/1", front.url)).await.unwrap();
    assert_eq!((&logged["client"], &logged["quantity"]), (&json!("bob"), &json!(7)));
    // Refusals, in new words and in old ones.
    let too_many = json!({"stock": "GameStart", "side": "buy", "quantity": 91});
    let unknown = json!({"stock": "NoCo", "side": "buy", "quantity": 1});
    for (front, wanted) in [(&front, [409, 404, 400]), (&legacy, [402, 404, 400])] {
        let told = [post(front, &too_many).await, post(front, &unknown).await, post(front, &json!({})).await];
        assert_eq!(told.clone().map(|(status, _)| status), wanted, "{told:?}");
        assert_eq!(told[0].1["code"], "not_enough");
        let missing = client.get(format!("{}/stocks/NoCo", front.url)).send().await.unwrap();
        assert_eq!(missing.status(), 404);
        assert_eq!(client.get(format!("{}/orders/99", front.url)).send().await.unwrap().status(), 404);
    }
    cluster.equal_hashes().await;
}
