//! What is repeated once a heartbeat: status, own header, join, leave and capacity, and questions that are overdue or were put
//! to a member that is silent.

use std::time::Duration;

use super::exchange::Work;
use super::{Asking, Node};
use crate::time::Time;
use crate::wire::Gossip;

/// Period of status messages, of repeated headers and joins, and of another try at what failed. A guess: small against
/// a round, large against a round trip.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(1000);
/// A request without an answer for this long counts as failed, whatever the driver does.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

impl Node {
    pub(super) fn beat(&mut self, now: Time) {
        self.broadcast(Gossip::Status(self.decided));
        let committed = self
            .exchange
            .as_ref()
            .is_some_and(|e| e.work == Work::Committed);
        if let Some(header) = self.own_header.clone().filter(|_| committed) {
            self.broadcast(Gossip::Header(Box::new(header)));
        }
        self.announce_again(now);
        if let Some(leave) = self.leaving
            && self.roster.contains(&self.me)
        {
            self.broadcast(Gossip::Leave(leave));
        }
        if self.may_join() {
            self.ask_to_join();
        }
        self.say_capacity_again();
        let overdue = |asking: &mut Asking| asking.since + REQUEST_TIMEOUT <= now;
        if let Some(asking) = self.asking_decisions
            && asking.since + REQUEST_TIMEOUT <= now
        {
            self.on_request_failed(asking.id);
        }
        self.asking_headers.take_if(overdue);
        self.asking_reductions.take_if(overdue);
        self.ask_others_than_silent(now);
        self.ask_for_headers(now);
        self.may_refresh = true;
    }
}
