//! Threads that work on shards side by side.
//!
//! Shards do not depend on each other: what [`crate::replica::Replica`] does to them has the same bits with any number of
//! threads.

use std::io;
use std::num::NonZeroUsize;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of threads.
#[derive(Debug)]
pub struct Workers {
    /// `None`: whoever calls is the only one.
    pool: Option<ThreadPool>,
}

impl Workers {
    /// # Errors
    /// When the operating system starts no more threads.
    pub fn start(threads: NonZeroUsize) -> io::Result<Workers> {
        if threads == NonZeroUsize::MIN {
            return Ok(Workers { pool: None });
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|number| format!("shards {number}"))
            .build();
        let pool = pool.map_err(io::Error::other)?;
        Ok(Workers { pool: Some(pool) })
    }

    /// Does `work`, in which shards are worked on by these threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

/// What `work` makes of each of `items`, in their order: side by side within [`Workers::run`], one after the other elsewhere.
pub(crate) fn each<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> R + Send + Sync,
) -> Vec<R> {
    if rayon::current_thread_index().is_none() {
        return items.map(work).collect();
    }
    let items: Vec<T> = items.collect();
    items.into_par_iter().map(work).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn results_are_in_order_and_come_from_as_many_threads_as_there_are() {
        let threads = 3;
        let workers = Workers::start(NonZeroUsize::new(threads).unwrap()).unwrap();
        let (together, seen) = (Barrier::new(threads), Mutex::new(BTreeSet::new()));
        let doubled = workers.run(|| {
            each(0..threads, |item| {
                // Passes only when all are at work.
                together.wait();
                seen.lock().unwrap().insert(rayon::current_thread_index());
                2 * item
            })
        });
        assert_eq!(doubled, [0, 2, 4]);
        assert_eq!(seen.into_inner().unwrap().len(), threads);
    }

    #[test]
    fn without_a_pool_whoever_calls_does_the_work() {
        let caller = std::thread::current().id();
        let alone = Workers::start(NonZeroUsize::MIN).unwrap();
        let threads = alone.run(|| each(0..2, |_| std::thread::current().id()));
        assert_eq!(threads, [caller; 2]);
    }
}
