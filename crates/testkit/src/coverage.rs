//! What a batch of runs has met. One that never met a required kind of trouble has proved nothing about it, and is refused.

macro_rules! counters {
    ($($(#[$required:ident])? $name:ident),+ $(,)?) => {
        #[derive(Clone, Debug, Default)]
        pub struct Coverage {
            $(pub $name: u64,)+
        }

        impl Coverage {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            /// Name, count, and whether a batch must have met it.
            pub fn counts(&self) -> Vec<(&'static str, u64, bool)> {
                vec![$((stringify!($name), self.$name, counters!(@required $($required)?)),)+]
            }
        }
    };
    (@required required) => { true };
    (@required) => { false };
}

counters! {
    #[required] leader_changes,
    #[required] offices,
    passes,
    entries,
    #[required] snapshots,
    #[required] snapshots_installed,
    #[required] registrations,
    #[required] registered_anew,
    #[required] adopted,
    agents_refused,
    #[required] hedges,
    laggards_left,
    old_desired_ignored,
    #[required] nodes_lost,
    #[required] fenced_by_keeper,
    failed_fences,
    #[required] workers_started,
    #[required] worker_crashes,
    #[required] worker_hangs,
    #[required] forsworn,
    disowned,
    #[required] saves,
    saves_skipped,
    #[required] saves_fenced,
    #[required] saves_failed,
    #[required] seals,
    #[required] degraded_seals,
    #[required] retires,
    #[required] aborts,
    #[required] quarantined,
    #[required] proofs,
    #[required] copies,
    copies_failed,
    #[required] shards_lost,
    #[required] restores,
    restores_failed,
    #[required] in_place,
    #[required] rank_moved,
    #[required] replaced,
    #[required] cancels,
    #[required] drains,
    #[required] jobs_done,
    #[required] jobs_expired,
    #[required] stale_commands_refused,
    #[required] coord_crashes,
    #[required] coord_pauses,
    #[required] agent_crashes,
    #[required] agent_pauses,
    #[required] power_losses,
    #[required] cuts,
    #[required] one_way_cuts,
    #[required] rotten_shards,
    #[required] full_disks,
    #[required] new_disks,
    #[required] wall_jumps,
    #[required] freezes,
    #[required] lost_messages,
    #[required] doubled,
    #[required] broken_streams,
    #[required] unknown_answers,
}
