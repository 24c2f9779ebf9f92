//! Workers of a program's own: `Client::worker`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate::client::{NewJob, Stop, Tally, WorkerEvent};
use quorate::services::jobs::State;
use tokio::sync::{mpsc, watch};

use crate::client;
use crate::support::Cluster;

#[tokio::test]
async fn work_that_panics_has_failed_and_the_worker_goes_on() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let job = NewJob { backoff: Some(Duration::from_millis(10)), ..NewJob::default() };
    let id = client.jobs().submit(&job).await.expect("it is submitted").id;
    let runs = Arc::new(AtomicU32::new(0));
    let work = |task: quorate::client::Task| {
        let runs = Arc::clone(&runs);
        async move {
            assert!(runs.fetch_add(1, Ordering::Relaxed) > 0, "the first time it panics");
            Ok(format!("attempt {}", task.claim.attempt))
        }
    };
    let (_stop, stopped) = watch::channel(Stop::No);
    let tally = client.worker("default", "W1").until_empty(true).run(work, stopped, |_| {}).await;
    assert_eq!(tally.expect("it has ended"), Tally { done: 1, dead: 0 });
    let job = client.jobs().result(id).await.expect("the job").data;
    assert_eq!((job.job.state, job.result.as_deref()), (State::Done, Some("attempt 2")));
    assert!(job.job.error.is_some_and(|error| error.contains("the work has panicked")), "{:?}", job.payload);
}

/// While nobody answers it says so once, and once that somebody does again; then it goes on as before.
#[tokio::test]
async fn a_worker_tells_once_that_the_cluster_is_away() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let hasty = cluster.client().timeout(Duration::from_secs(1)).build().expect("a client");
    let (told, mut events) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(Stop::No);
    // Longer than the cluster is away: it is not evicted.
    let worker = hasty.worker("default", "W1").lease(Duration::from_secs(60));
    let tell = move |event: WorkerEvent| drop(told.send(event));
    let running = tokio::spawn(worker.run(async |_| Ok(String::new()), stopped, tell));
    assert!(matches!(events.recv().await, Some(WorkerEvent::Joined(_))));
    cluster.kill9("S1");
    assert!(matches!(events.recv().await, Some(WorkerEvent::Trouble(_))));
    cluster.restart("S1").await;
    let next = events.recv().await;
    assert!(matches!(next, Some(WorkerEvent::Recovered)), "{next:?}");
    let id = client.jobs().submit(&NewJob::default()).await.expect("it is submitted").id;
    let begun = events.recv().await;
    assert!(matches!(&begun, Some(WorkerEvent::Begun(claim)) if claim.id == id), "{begun:?}");
    let ended = events.recv().await;
    assert!(matches!(ended, Some(WorkerEvent::Ended { state: State::Done, .. })), "{ended:?}");
    stop.send_replace(Stop::AfterJob);
    assert_eq!(running.await.expect("no panic").expect("it has left"), Tally { done: 1, dead: 0 });
}

/// Two workers that share a client are two workers: the second one waits for the name.
#[tokio::test]
async fn two_workers_of_one_client_do_not_share_a_membership() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let (stop, stopped) = watch::channel(Stop::No);
    let run = |told: mpsc::UnboundedSender<WorkerEvent>| {
        let worker = client.worker("default", "W1").lease(Duration::from_secs(2));
        let tell = move |event: WorkerEvent| drop(told.send(event));
        tokio::spawn(worker.run(async |_| Ok(String::new()), stopped.clone(), tell))
    };
    let (first, mut of_first) = mpsc::unbounded_channel();
    let first = run(first);
    assert!(matches!(of_first.recv().await, Some(WorkerEvent::Joined(_))));
    let (second, mut of_second) = mpsc::unbounded_channel();
    let second = run(second);
    let told = of_second.recv().await;
    assert!(matches!(told, Some(WorkerEvent::NameTaken(_))), "{told:?}");
    stop.send_replace(Stop::AfterJob);
    for worker in [first, second] {
        worker.await.expect("no panic").expect("it has ended");
    }
}
