//! `outlast node label`.

use std::collections::BTreeMap;

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::print_one;

#[derive(Debug, clap::Args)]
pub(crate) struct Label {
    /// The node's name
    node: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = change)]
    changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(String, String),
    Remove(String),
}

fn change(text: &str) -> Result<Change, String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok(Change::Set(key.to_owned(), value.to_owned())),
        (None, Some(key)) if !key.is_empty() => Ok(Change::Remove(key.to_owned())),
        _ => Err("write KEY=VALUE to set a label or KEY- to remove it".to_owned()),
    }
}

impl Label {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let mut set = BTreeMap::new();
        let mut remove = Vec::new();
        for change in self.changes {
            match change {
                Change::Set(key, value) => drop(set.insert(key, value)),
                Change::Remove(key) => remove.push(key),
            }
        }
        let node = session.client.label_node(&self.node, set, remove).await?;
        print_one(session.format, &node, || {
            let labels: BTreeMap<_, _> = node.labels.iter().collect();
            let labels: Vec<_> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{}\n", format!("{} {}", node.id, labels.join(" ")).trim_end())
        })?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        assert_eq!(change("disk=nvme"), Ok(Change::Set("disk".into(), "nvme".into())));
        assert_eq!(change("a=b-"), Ok(Change::Set("a".into(), "b-".into())));
        assert_eq!(change("zone-"), Ok(Change::Remove("zone".into())));
        for bad in ["", "zone", "=x", "-"] {
            assert!(change(bad).is_err(), "{bad:?}");
        }
    }
}
