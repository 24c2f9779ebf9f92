//! A wall clock far ahead of the logged time may be wrong. But when the whole cluster was stopped for long, it is the
//! logged time that stood still: then the other servers' clocks show the same as this one's.

use std::time::Duration;

use futures_util::future::join_all;

use super::Inner;
use crate::clock::SAME_TIME;
use crate::message::{Reply, Request};

const ASK: Duration = Duration::from_millis(500);

impl Inner {
    /// As the primary of `term`, whose wall clock is not believed: believes it if a majority of the voters agrees.
    pub(super) async fn compare_clocks(&self, term: u64) {
        let voters = self.voters();
        let others = self.members().into_iter().filter(|(id, _)| *id != self.id && voters.contains(id));
        let asked = others.map(|(id, info)| async move {
            match self.lanes.to(id, &info).call(&Request::Clock, ASK).await {
                Ok(Reply::Clock(wall)) => Some(wall),
                _ => None,
            }
        });
        let answers = join_all(asked).await;
        let wall = self.clock.wall();
        let agree = |theirs: &u64| theirs.abs_diff(wall) <= SAME_TIME;
        let agreeing = answers.into_iter().flatten().filter(agree).count();
        let own = usize::from(voters.contains(&self.id));
        if agreeing + own > voters.len() / 2 {
            self.logged_clock.believe(&*self.clock, term);
        }
    }
}
