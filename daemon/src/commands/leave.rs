//! `gradmesh leave`

use anyhow::Context;
use serde_json::json;

use super::{print_json, running};
use crate::cli::GlobalArgs;
use crate::status::client;
use crate::terminal::say;

pub(super) async fn run(global: &GlobalArgs, json: bool) -> anyhow::Result<()> {
    let (dir, address) = running(global).await?;
    let token = dir.token()?.with_context(|| {
        format!(
            "{} holds no status.token: it is not the state directory of a daemon, or not readable by this user",
            dir.path().display()
        )
    })?;
    client::leave(&address.url, &token)
        .await
        .context("the daemon was not asked to leave; is it running? `gradmesh status` tells")?;
    if json {
        print_json(&json!({ "leaving": true, "dir": dir.path() }))
    } else {
        say("leaving: the next decision takes this peer out of the roster");
        Ok(())
    }
}
