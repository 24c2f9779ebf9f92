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
            let (stock, told) = (cluster.http.json(&stock).await?, cluster.http.json(&cache).await?);
            let is_pushed = told["pushes"].as_u64() > Some(0);
            if stock["quantity"] == 97 && is_pushed { Ok(()) } else { Err(format!("{stock}, {told}")) }
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
        // What it does not know is told in the same way.
        for (method, path, status) in [
            ("GET", "/", 404),
            ("DELETE", "/orders", 405),
            ("GET", "/orders/abc", 400),
            ("GET", "/stocks/%ff", 400),
        ] {
            let request = client.request(method.parse().unwrap(), format!("{}{path}", front.url));
            let answer = request.send().await.unwrap();
            let told = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
            assert!(told.0 == status && told.1["detail"].is_string(), "{path}: {told:?}");
        }
    }
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn the_catalog_is_changed_by_the_command_line() {
    let cluster = Cluster::start(1).await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let file = dir.path().join("stocks.toml").display().to_string();
    std::fs::write(&file, "[[stocks]]\nname = 'TurtleCo'\nprice = 1250\nquantity = 40\n").expect("a file");
    assert_eq!(exchange(&cluster, &["load", &file]).await.expect(0).stdout, "1 stocks\n");
    exchange(&cluster, &["add", "FrogCo", "0.5", "7"]).await.expect(0);
    exchange(&cluster, &["reprice", "FrogCo", "2"]).await.expect(0);
    let frog = exchange(&cluster, &["lookup", "FrogCo", "--json"]).await.expect(0).json();
    assert_eq!((&frog["price"], &frog["quantity"]), (&json!(200), &json!(7)), "{frog}");
    let gone = exchange(&cluster, &["lookup", "GameStart"]).await.expect(1);
    assert!(gone.stderr.contains("unknown_stock"), "{gone:?}");
    let refused = exchange(&cluster, &["order", "buy", "FrogCo", "-3"]).await.expect(2);
    assert!(refused.stderr.contains("what is asked for here is not negative"), "{refused:?}");
    std::fs::write(&file, "stocks = 7").expect("a file");
    exchange(&cluster, &["load", &file]).await.expect(2);
}

/// An order on the trader's account that the trader knows nothing of.
#[tokio::test]
async fn a_trader_that_disagrees_with_the_log_says_so() {
    let cluster = Cluster::start(1).await;
    let trade = exchange(&cluster, &["trade", "--seconds", "10", "--account", "ada"]);
    let meddle = async {
        cluster
            .until("she trades", async || {
                let orders = exchange(&cluster, &["orders", "--account", "ada"]).await.expect(0).stdout;
                if orders.lines().count() > 1 { Ok(()) } else { Err(orders) }
            })
            .await;
        exchange(&cluster, &["order", "sell", "GameStart", "99", "--account", "ada"]).await.expect(0);
    };
    let (trade, ()) = tokio::join!(trade, meddle);
    let trade = trade.expect(1);
    assert!(trade.stdout.contains("nobody here made it"), "{trade:?}");
    assert!(trade.stdout.contains("1 differences") && trade.stderr.contains("1 orders differ"), "{trade:?}");
}
