//! The `checkpoint` section of a job file.

use super::super::{CheckpointPolicy, Durability, Every, OnBusy};
use super::{Section, SpecError, invalid};
use crate::Span;

pub(super) fn checkpoint(top: &Section<'_>) -> Result<CheckpointPolicy, SpecError> {
    let known = &["every", "keep", "durability", "on_busy"];
    let Some(section) = top.section("checkpoint", known)? else {
        let on_busy = OnBusy::default();
        return Ok(CheckpointPolicy { every: Every::Auto, keep: 3, durability: None, on_busy });
    };
    let durability = match section.text("durability")?.as_deref() {
        None => None,
        Some("local") => Some(Durability::Local),
        Some("replicated") => Some(Durability::Replicated),
        Some("stored") => Some(Durability::Stored),
        Some(other) => {
            return Err(invalid("checkpoint.durability", &other.into(), "use local, replicated or stored"));
        }
    };
    let on_busy = match section.text("on_busy")?.as_deref() {
        None | Some("skip") => OnBusy::Skip,
        Some("wait") => OnBusy::Wait,
        Some(other) => return Err(invalid("checkpoint.on_busy", &other.into(), "use skip or wait")),
    };
    let keep = section.whole("keep", 1, 1_000)?.unwrap_or(3) as u32;
    Ok(CheckpointPolicy { every: every(&section)?, keep, durability, on_busy })
}

fn every(section: &Section<'_>) -> Result<Every, SpecError> {
    let Some(text) = section.text("every")? else { return Ok(Every::Auto) };
    if text == "auto" {
        return Ok(Every::Auto);
    }
    if let Some(number) = text.strip_suffix("steps").or_else(|| text.strip_suffix("step")) {
        if let Ok(steps @ 1..) = number.trim().parse() {
            return Ok(Every::Steps(steps));
        }
    } else if let Some(span) = text.parse::<Span>().ok().filter(|span| span.millis() > 0) {
        return Ok(Every::Time(span));
    }
    Err(invalid(
        "checkpoint.every",
        &text.into(),
        "write a time such as 10s, a number of steps such as `100 steps`, or auto",
    ))
}
