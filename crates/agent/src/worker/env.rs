//! The environment of a worker (design section 3), so that an unchanged script works. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use super::folder::WorkerDir;
use crate::assigned::Assigned;

/// Where programs are looked for when nobody says.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) struct Surroundings<'a> {
    pub(super) assigned: &'a Assigned,
    pub(super) dir: &'a WorkerDir,
    pub(super) socket: &'a Path,
    /// `host:port`
    pub(super) rendezvous: &'a str,
    pub(super) has_restored: bool,
    /// The node has GPUs, whether or not some are the worker's.
    pub(super) node_has_gpus: bool,
    /// The folder of our own binary, so that `outlast checkpoint put` works inside a worker.
    pub(super) exe_dir: Option<&'a Path>,
    pub(super) agent_path: Option<&'a str>,
}

/// The user's variables, overlaid by ours: a job cannot lie to itself about its rank.
pub(super) fn environment(around: &Surroundings<'_>) -> BTreeMap<String, String> {
    let Surroundings { assigned, dir, .. } = around;
    let mut env = assigned.env.clone();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    set("RANK", assigned.key.rank.to_string());
    set("WORLD_SIZE", assigned.world_size.to_string());
    set("LOCAL_RANK", assigned.local_rank.to_string());
    set("LOCAL_WORLD_SIZE", assigned.local_world_size.to_string());
    if let Some((host, port)) = around.rendezvous.rsplit_once(':') {
        set("MASTER_ADDR", host.trim_matches(['[', ']']).to_owned());
        set("MASTER_PORT", port.to_owned());
    }
    set("OUTLAST_JOB", assigned.key.attempt.group.job.to_string());
    set("OUTLAST_JOB_NAME", assigned.job_name.clone());
    set("OUTLAST_ATTEMPT", assigned.key.attempt.to_string());
    set("OUTLAST_SOCKET", path(around.socket));
    set("OUTLAST_CHECKPOINT_DIR", path(&dir.checkpoint()));
    if around.node_has_gpus {
        let gpus: Vec<_> = assigned.gpus.iter().map(u32::to_string).collect();
        set("CUDA_VISIBLE_DEVICES", gpus.join(","));
        // The order that the agent counted them in.
        set("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned());
    }
    env.remove("OUTLAST_RESTORE_DIR");
    if around.has_restored {
        env.insert("OUTLAST_RESTORE_DIR".to_owned(), path(&dir.restore()));
    }
    if let Some(exe_dir) = around.exe_dir {
        let before = env.get("PATH").map(String::as_str).or(around.agent_path).unwrap_or(PATH_DEFAULT);
        let with_ours = format!("{before}:{}", exe_dir.display());
        env.insert("PATH".to_owned(), with_ours);
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assigned::sample;

    fn around<'a>(assigned: &'a Assigned, dir: &'a WorkerDir) -> Surroundings<'a> {
        Surroundings {
            assigned,
            dir,
            socket: Path::new("/s"),
            rendezvous: "[::1]:4711",
            has_restored: false,
            node_has_gpus: true,
            exe_dir: Some(Path::new("/opt/outlast")),
            agent_path: Some("/bin"),
        }
    }

    #[test]
    fn a_worker_knows_its_place_and_cannot_lie_about_it() {
        let mut assigned = sample("j1/0@1.2", 3);
        assigned.env = [("RANK", "9"), ("EPOCHS", "20"), ("OUTLAST_RESTORE_DIR", "/x")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let dir = WorkerDir::at("/w".into());
        let env = environment(&around(&assigned, &dir));
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!((get("RANK"), get("EPOCHS")), (Some("3"), Some("20")));
        assert_eq!((get("MASTER_ADDR"), get("MASTER_PORT")), (Some("::1"), Some("4711")));
        assert_eq!(get("OUTLAST_ATTEMPT"), Some("j1/0@1.2"));
        assert_eq!(get("CUDA_VISIBLE_DEVICES"), Some(""), "no GPU assigned means no GPU seen");
        assert_eq!(get("OUTLAST_RESTORE_DIR"), None, "nothing to restore");
        assert_eq!(get("PATH"), Some("/bin:/opt/outlast"));
        let env = environment(&Surroundings {
            has_restored: true,
            node_has_gpus: false,
            ..around(&assigned, &dir)
        });
        assert_eq!(env.get("OUTLAST_RESTORE_DIR").map(String::as_str), Some("/w/restore"));
        assert!(!env.contains_key("CUDA_VISIBLE_DEVICES"));
    }
}
