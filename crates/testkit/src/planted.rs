//! Known bugs, planted to see that they are found: each with the number of seeds within which one of them has to break.

use crate::model_bug::ModelBug;

#[cfg(feature = "planted")]
use outlast_control::planted::{Bug as ControlBug, Switched};

/// A planted bug, in the control logic or in what is modelled around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    pub name: &'static str,
    /// Seeds within which it has to be found.
    pub within: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Model(ModelBug),
    #[cfg(feature = "planted")]
    Control(ControlBug),
}

#[cfg(not(feature = "planted"))]
pub(crate) struct Switched;

impl Bug {
    pub(crate) fn in_model(self) -> Option<ModelBug> {
        match self.place {
            Place::Model(bug) => Some(bug),
            #[cfg(feature = "planted")]
            Place::Control(_) => None,
        }
    }

    /// Until the guard is dropped.
    pub(crate) fn switch_on(self) -> Option<Switched> {
        match self.place {
            Place::Model(_) => None,
            #[cfg(feature = "planted")]
            Place::Control(bug) => Some(outlast_control::planted::switch_on(bug)),
        }
    }

    /// All that this build knows.
    pub fn all() -> Vec<Self> {
        let model = |name, within, bug| Self { name, within, place: Place::Model(bug) };
        #[cfg_attr(not(feature = "planted"), expect(unused_mut, reason = "the control logic's own follow"))]
        let mut all = vec![
            model("acknowledge-before-sync", 50, ModelBug::AckBeforeSync),
            model("renew-without-quorum", 50, ModelBug::RenewWithoutQuorum),
            model("join-running-round", 50, ModelBug::JoinRunningRound),
            model("lease-from-answer", 50, ModelBug::LeaseFromAnswer),
            model("agent-goes-back", 200, ModelBug::AgentGoesBack),
            model("forget-to-adopt", 50, ModelBug::ForgetToAdopt),
            model("trust-bytes", 200, ModelBug::TrustBytes),
            model("confirm-copy-early", 50, ModelBug::ConfirmCopyEarly),
            model("release-early", 50, ModelBug::ReleaseEarly),
            model("ignore-lost-log", 100, ModelBug::IgnoreLostLog),
            model("purge-first", 100, ModelBug::PurgeFirst),
        ];
        #[cfg(feature = "planted")]
        all.extend(Self::of_control());
        all
    }

    #[cfg(feature = "planted")]
    fn of_control() -> Vec<Self> {
        let control = |(name, bug)| Self { name, within: 200, place: Place::Control(bug) };
        ControlBug::ALL.iter().copied().map(control).collect()
    }
}
