//! Workers in a program of one's own: submits jobs, and has some workers do them, which takes them next to no time. So what it says
//! in the end is how fast the cluster hands jobs out.
//!
//! `cargo run --release --example workers -- 20000 16 6`: 20,000 jobs, 16 workers, which begin 6 s after the last job was
//! submitted. A cluster has to be there (`scripts/cluster.sh up`).

use std::error::Error;
use std::time::{Duration, Instant};

use quorate::client::{Client, NewJob, Stop, Task, WINDOW};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<usize>());
    let mut next = |default| numbers.next().unwrap_or(Ok(default));
    let (jobs, workers, pause) = (next(1_000)?, next(4)?, next(0)?);

    let client = Client::builder().timeout(Duration::from_secs(30)).build()?;
    let queue = format!("example-{}", std::process::id());
    let job = |n: usize| NewJob { queue: queue.clone(), payload: n.to_string(), ..NewJob::default() };
    for some in (0..jobs).map(job).collect::<Vec<_>>().chunks(WINDOW) {
        client.jobs().submit_all(some).await?;
    }
    tokio::time::sleep(Duration::from_secs(pause as u64)).await;

    let (_stop, stopped) = watch::channel(Stop::No);
    let work = async |task: Task| Ok(format!("job {} has been done", task.claim.id));
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for n in 0..workers {
        let worker = client.worker(&queue, &format!("W{n}")).until_empty(true);
        all.spawn(worker.run(work, stopped.clone(), |_| {}));
    }
    let mut done = 0;
    while let Some(tally) = all.join_next().await {
        done += tally??.done;
    }
    println!("{done} jobs done, {:.0} a second", done as f64 / begun.elapsed().as_secs_f64());
    client.close().await?;
    Ok(())
}
