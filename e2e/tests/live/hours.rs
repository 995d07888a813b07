//! The exhaustive matrices, and parallel programs as they are: together hours, so `e2e/test --all` alone runs them.

use anyhow::{Context as _, Result};
use e2e::Turn;

use crate::{
    kills::{Way, case},
    operator::{EFFECTS, life},
    parallel::{equations, transaction},
};

/// Every way, for one VM and two, once and twice in a row.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "hours: e2e/test --all"]
async fn every_way_of_losing_the_slots() -> Result<()> {
    for way in [Way::Notice, Way::Kill, Way::Walltime] {
        for members in [1, 2] {
            for times in [1, 2] {
                let said = case(way, members, times).await;
                said.with_context(|| format!("{way:?}, {members} VMs, {times} times"))?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "hours: e2e/test --all"]
async fn an_operator_killed_at_any_effect_uses_each_slot_once() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    for effect in EFFECTS.chunks(1) {
        life(&bed, effect).await.with_context(|| format!("killed at {effect:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "hours: e2e/test --all"]
async fn an_open_mpi_program_over_two_vms() -> Result<()> {
    equations(2).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "hours: e2e/test --all"]
async fn an_open_mpi_program_over_four_vms() -> Result<()> {
    equations(4).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "hours: e2e/test --all"]
async fn an_open_transaction_commits_after_the_kills() -> Result<()> {
    transaction().await
}
