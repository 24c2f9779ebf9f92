//! The fault detectors on real processes: what they see, what they launch, and that nobody needs them.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::watched::Watched;
use tokio::time::timeout;

#[tokio::test]
async fn a_server_that_is_killed_is_seen_and_launched_again_on_command_once() {
    let watched = Watched::start(3, &[]).await;
    let before = watched.member(1).await.expect("S2");
    watched.signal(1, "KILL");
    let dead = watched.until_state(1, "dead").await;
    assert_eq!(dead["incarnation"], before["incarnation"]);
    assert!(watched.pids(1).is_empty(), "it waits for a word");
    // The same word twice, as two managers would say it.
    for _ in 0..2 {
        assert_eq!(watched.launch(1, &dead["incarnation"]).await.status, 200);
    }
    let again = watched.until_state(1, "alive").await;
    assert!(again["incarnation"].as_u64() > dead["incarnation"].as_u64(), "{again}");
    let late = watched.launch(1, &dead["incarnation"]).await;
    assert_eq!(late.json()["done"], "nothing to do");
    assert_eq!(watched.pids(1).len(), 1);
    let log = watched.gfd.log();
    for line in ["GFD: 0 members", "GFD: 3 members: S1, S2, S3", "GFD: 2 members: S1, S3"] {
        assert!(log.lines().any(|written| written == line), "{line} is not in\n{log}");
    }
    assert!(log.contains("GFD sending heartbeat to LFD1"), "{log}");
}

#[tokio::test]
async fn a_server_that_hangs_is_dead_until_it_answers_again() {
    let watched = Watched::start(2, &["--restart", "always"]).await;
    let before = watched.member(1).await.expect("S2");
    let pids = watched.pids(1);
    watched.signal(1, "STOP");
    watched.until_state(1, "dead").await;
    watched.signal(1, "CONT");
    let after = watched.until_state(1, "alive").await;
    assert_eq!(after["incarnation"], before["incarnation"], "it is the same process");
    assert_eq!(watched.pids(1), pids);
}

#[tokio::test]
async fn a_server_outlives_its_detector_and_the_next_one_adopts_it() {
    let mut watched = Watched::start(2, &["--restart", "always"]).await;
    let before = watched.member(0).await.expect("S1");
    let pids = watched.pids(0);
    let since = before["since_ms"].clone();
    watched.lfds[0].kill9();
    watched
        .until("the GFD misses LFD1", async || {
            let member = watched.member(0).await?;
            if member["lfd_silent"] == true { Ok(()) } else { Err(member.to_string()) }
        })
        .await;
    assert!(watched.gfd.log().contains("LFD1 is silent"));
    assert_eq!(watched.member(0).await.expect("S1")["since_ms"], since, "it was alive all the time");
    watched.lfds[0].start();
    watched
        .until("the new detector has adopted it", async || {
            let log = watched.lfds[0].log();
            log.contains("adopted the server that runs already").then_some(()).ok_or(log)
        })
        .await;
    assert_eq!(watched.pids(0), pids);
    // Also the end of a process that is not its child is seen.
    watched.signal(0, "KILL");
    watched
        .until("it is launched again", async || {
            let member = watched.member(0).await?;
            let again = member["state"] == "alive" && member["incarnation"] != before["incarnation"];
            again.then_some(()).ok_or(member.to_string())
        })
        .await;
}

#[tokio::test]
async fn a_server_whose_detector_is_gone_dies_in_the_view_as_well() {
    let mut watched = Watched::start(2, &[]).await;
    watched.lfds[1].kill9();
    watched.signal(1, "KILL");
    watched.until_state(1, "dead").await;
    assert_eq!(watched.member(0).await.expect("S1")["state"], "alive");
}

#[tokio::test]
async fn a_new_global_detector_learns_all_again() {
    let mut watched = Watched::start(2, &[]).await;
    watched.gfd.kill9();
    let pids: Vec<_> = (0..2).map(|n| watched.pids(n)).collect();
    watched.gfd.start();
    for (n, before) in pids.iter().enumerate() {
        watched.until_state(n, "alive").await;
        assert_eq!(watched.pids(n), *before, "the servers noticed nothing");
    }
}

#[tokio::test]
async fn a_detector_takes_its_server_down_with_it_in_order() {
    let mut watched = Watched::start(2, &["--restart", "always"]).await;
    watched.until_ready(1).await;
    assert_eq!(watched.lfds[1].terminate().code(), Some(0));
    assert!(watched.pids(1).is_empty());
    let log = watched.lfds[1].log();
    assert!(log.contains("leadership is handed over, the state is flushed"), "{log}");
    watched.until_state(1, "dead").await;
}

#[tokio::test]
async fn what_is_stopped_or_held_stays_down_until_a_person_says_otherwise() {
    let watched = Watched::start(2, &["--restart", "always"]).await;
    assert_eq!(watched.say(1, "hold", json!({})).await.status, 200);
    watched.signal(1, "KILL");
    let dead = watched.until_state(1, "dead").await;
    assert_eq!(dead["held"], true);
    assert_eq!(watched.launch(1, &dead["incarnation"]).await.status, 409);
    assert_eq!(watched.say(1, "launch", json!({})).await.status, 200);
    assert_eq!(watched.until_state(1, "alive").await["held"], false);
    assert_eq!(watched.say(1, "stop", json!({})).await.status, 200);
    assert_eq!(watched.until_state(1, "dead").await["held"], true);
    assert!(watched.pids(1).is_empty());
}

#[tokio::test]
async fn the_view_is_streamed_from_where_it_stands() {
    let watched = Watched::start(2, &[]).await;
    let mut stream =
        watched.http.stream(&format!("{}/v1/view/watch", watched.gfd.url()), None).await.expect("a stream");
    let mut text = String::new();
    let mut next = async |wanted: &dyn Fn(&Value) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            while let Some((event, rest)) = text.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
                text = rest.to_owned();
                let Some(data) = data else { continue };
                let view: Value = serde_json::from_str(&data).expect("a view");
                if wanted(&view) {
                    return view;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let chunk = timeout(left, stream.chunk()).await.expect("an event in time");
            text.push_str(&String::from_utf8_lossy(&chunk.expect("a chunk").expect("no end")));
        }
    };
    let first = next(&|_| true).await;
    assert_eq!(first["members"].as_array().map(Vec::len), Some(2), "{first}");
    watched.signal(1, "KILL");
    let later = next(&|view| view["members"][1]["state"] == "dead").await;
    assert!(later["revision"].as_u64() > first["revision"].as_u64());
}
