//! A member of our own cluster: a process that trains one copy of the model in lockstep with the others.
//!
//! Each step computes the gradient of the member's batches, averages it over the ring and takes the same AdamW step as all
//! others. Nothing overlaps: the transfer begins when the gradient is complete.

use std::io::{self, BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};
use gradmesh_protocol::hash::Hash;
use gradmesh_trainer::optimizer::le_bytes;
use gradmesh_trainer::torch::{TorchSettings, TorchTrainer, set_threads};
use serde::Serialize;

use super::WARM_UP;
use super::group::{Finished, Listens, Ready, Stepped};
use super::ring::Ring;
use super::task::{self, Task, Tokens};

/// `gradmesh-bench cluster-member`, which only `gradmesh-bench overhead` starts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory with the task
    dir: PathBuf,
    /// From 0
    rank: u32,
    /// Where to listen
    #[arg(long)]
    listen: Ipv4Addr,
}

/// Serves until told to finish; what is said and answered is in group.rs.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    set_threads(1);
    let commands = commands();
    let listener = TcpListener::bind((args.listen, 0))
        .with_context(|| format!("listening at {}", args.listen))?;
    say(&Listens {
        port: Some(listener.local_addr()?.port()),
    })?;
    let next = expect(&commands, "meet")?;
    let next = next
        .parse()
        .with_context(|| format!("meet {next:?}: no address"))?;
    let mut member = Member::meet(&args.dir, args.rank, &listener, next)?;
    say(&Ready { ready: true })?;
    expect(&commands, "go")?;
    let began = Instant::now();
    for step in 0..member.task.steps {
        say(&member.step(step, began)?)?;
    }
    expect(&commands, "finish")?;
    say(&member.finish(&args.dir)?)
}

struct Member {
    task: Task,
    rank: u32,
    trainer: TorchTrainer,
    tokens: Tokens,
    ring: Ring,
}

impl Member {
    /// Reads the task, joins the ring and warms up: libtorch plans its kernels, and TCP its windows.
    fn meet(
        dir: &Path,
        rank: u32,
        listener: &TcpListener,
        next: SocketAddr,
    ) -> anyhow::Result<Member> {
        let task = Task::read(dir)?;
        let settings = TorchSettings {
            // Each peer's batch alone, as that peer would compute it.
            micro_batch: task.batch_sequences,
            ..TorchSettings::cpu(task.optimizer.clone())
        };
        let mut trainer = TorchTrainer::new(task.model.clone(), settings)?;
        trainer.set_parameters(&task::read_theta(dir)?)?;
        let mut ring = Ring::join(rank as usize, task.members as usize, listener, next)?;
        let batch = Tokens::open(&task, rank, dir)?.batch()?;
        for _ in 0..WARM_UP {
            let (_, mut gradient) = trainer.gradient(&batch)?;
            ring.average(&mut gradient)?;
        }
        Ok(Member {
            tokens: Tokens::open(&task, rank, dir)?,
            task,
            rank,
            trainer,
            ring,
        })
    }

    fn step(&mut self, step: u32, began: Instant) -> anyhow::Result<Stepped> {
        let batch = self.tokens.batch()?;
        let start = Instant::now();
        let (loss, mut gradient) = self
            .trainer
            .gradient(&batch)
            .with_context(|| format!("step {step}"))?;
        let computed = Instant::now();
        self.ring
            .average(&mut gradient)
            .with_context(|| format!("step {step}"))?;
        let averaged = Instant::now();
        self.trainer
            .step(&gradient, step.into())
            .with_context(|| format!("step {step}"))?;
        Ok(Stepped {
            step,
            loss: loss.into(),
            compute_s: (computed - start + averaged.elapsed()).as_secs_f64(),
            ended_s: began.elapsed().as_secs_f64(),
        })
    }

    /// Leaves the parameters in `dir` if it is the first.
    fn finish(&self, dir: &Path) -> anyhow::Result<Finished> {
        let parameters = self.trainer.current_parameters()?;
        if self.rank == 0 {
            task::write_trained(dir, &parameters)?;
        }
        Ok(Finished {
            hash: Hash::of_content(&le_bytes(&parameters)).to_string(),
        })
    }
}

fn say(answer: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// The lines of standard input. Its end, however it comes about, is the end of this process.
fn commands() -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
        std::process::exit(1);
    });
    lines
}

/// What comes after `word` in the next command.
fn expect(commands: &Receiver<String>, word: &str) -> anyhow::Result<String> {
    let line = commands.recv()?;
    match line.strip_prefix(word) {
        Some(rest) => Ok(rest.trim().to_owned()),
        None => bail!("told {line:?} where {word:?} belongs"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::overhead::training::Training;

    /// The last parameters of a training of three steps by `members` members, in threads of this process.
    fn trained(training: &Training, members: u32, dir: &Path) -> Vec<Finished> {
        set_threads(1);
        let material = training.material().unwrap();
        let task = Task::new(training, &material, members).unwrap();
        task.write(&material, dir).unwrap();
        let listeners: Vec<TcpListener> = (0..members)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let next = |rank: usize| {
            listeners[(rank + 1) % listeners.len()]
                .local_addr()
                .unwrap()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = listeners
                .iter()
                .enumerate()
                .map(|(rank, listener)| {
                    let (rank, next) = (rank as u32, next(rank));
                    scope.spawn(move || {
                        let mut member = Member::meet(dir, rank, listener, next).unwrap();
                        let began = Instant::now();
                        for step in 0..member.task.steps {
                            member.step(step, began).unwrap();
                        }
                        member.finish(dir).unwrap()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        })
    }

    #[test]
    fn two_members_end_where_one_that_does_their_work_ends() {
        let dir = tempfile::tempdir().unwrap();
        let training = Training::tiny(2, dir.path());
        let two = trained(&training, 2, dir.path());
        assert_eq!(two[0], two[1]);
        // Bit for bit: halves are exact, and a sum of two does not know its order.
        let one = trained(&training, 1, dir.path());
        assert_eq!(one[0], two[0]);
        let start = Hash::of_content(&le_bytes(&task::read_theta(dir.path()).unwrap()));
        assert_ne!(one[0].hash, start.to_string());
    }
}
