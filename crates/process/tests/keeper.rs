//! Real keepers with real workers: how they end, what they leave, and what happens when somebody dies.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use outlast_process::{
    AdoptError, Adopted, CgroupLimits, Cgroups, ExitFile, Keeper, KeeperSpec, LeftProcess, LogLine,
    LogReader, LogStream, SpawnError, boot_now, process_start_time,
};
use outlast_types::{AttemptId, ExitStatus};
use rustix::process::{Pid, Signal, kill_process};

/// Far beyond what anything here takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn exe() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let exe = test.ancestors().nth(2).expect("target/debug/deps").join("examples/keeper");
    assert!(
        exe.exists(),
        "{} is missing: `cargo test` builds it, `cargo test --test keeper` alone does not",
        exe.display()
    );
    exe
}

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }
    fn keeper_dir(&self) -> PathBuf {
        self.dir.path().join("keeper")
    }
    fn spec(&self, script: &str) -> KeeperSpec {
        // Names the cgroup too, so it must differ between tests that run at once.
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let attempt: AttemptId = format!("j{}/0@1.{number}", std::process::id()).parse().expect("valid");
        KeeperSpec::new(attempt, 0, ["sh", "-c", script].map(str::to_owned).to_vec(), self.dir.path())
    }
    fn spawn(&self, spec: &KeeperSpec) -> Keeper {
        Keeper::spawn(&exe(), &self.keeper_dir(), spec).expect("a keeper")
    }
    fn run(&self, script: &str) -> ExitFile {
        let keeper = self.spawn(&self.spec(script));
        let exit = keeper.wait_exit().expect("an exit record");
        keeper.done().expect("done");
        exit
    }
    fn log(&self) -> Vec<LogLine> {
        LogReader::open(&self.keeper_dir(), 1).collect()
    }
    fn texts(&self) -> Vec<String> {
        self.log().iter().map(|line| String::from_utf8_lossy(&line.bytes).into_owned()).collect()
    }
    /// Starts the keeper from a process of its own, which can be killed as an agent can.
    fn spawn_from_agent(&self, spec: &KeeperSpec) -> (Child, u32, u32) {
        let json = serde_json::to_string(spec).expect("JSON");
        let mut command = Command::new(exe());
        command.arg("agent").arg(self.keeper_dir()).arg(json).stdout(Stdio::piped());
        let mut agent = command.spawn().expect("an agent");
        let mut line = String::new();
        BufReader::new(agent.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
        (agent, pids[0], pids[1])
    }
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero");
    kill_process(pid, signal).expect("signalled");
}

/// With a cgroup where this machine allows one; else says so and returns `false`.
fn give_cgroup(spec: &mut KeeperSpec, limits: CgroupLimits) -> bool {
    let cgroups = Cgroups::detect();
    spec.cgroup = cgroups.plan("process-tests", &spec.attempt, spec.rank, limits);
    if spec.cgroup.is_none() {
        eprintln!("skipped: {}", cgroups.why_not);
    }
    spec.cgroup.is_some()
}

fn pid_in(scene: &Scene, at: usize) -> u32 {
    wait_until("the script prints its pids", || scene.texts().len() > at);
    scene.texts()[at].parse().expect("a pid")
}

#[test]
fn output_and_exit_code_are_captured() {
    let scene = Scene::new();
    let exit = scene.run("echo out; echo err >&2; printf unfinished; exit 3");
    assert_eq!((exit.status, exit.fenced, exit.leftovers), (ExitStatus::Code(3), false, 0));
    assert!(exit.ended_at >= exit.started_at && exit.started_at.0 > 0);
    let mut last = exit.last_lines.clone();
    last.sort();
    assert_eq!(last, ["err", "out", "unfinished"]);
    let log = scene.log();
    assert_eq!(log.iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let error = log.iter().find(|line| line.bytes == b"err").expect("there");
    assert!(error.stream == LogStream::Stderr && !error.partial);
    assert!(matches!(Keeper::adopt(&scene.keeper_dir()), Ok(Adopted::Ended(again)) if again == exit));
}

#[test]
fn signals_are_told_from_codes() {
    assert_eq!(Scene::new().run("kill -SEGV $$").status, ExitStatus::Signal(11));
    assert_eq!(Scene::new().run("kill -KILL $$").status, ExitStatus::Signal(9));
    assert_eq!(Scene::new().run("true").status, ExitStatus::Code(0));
}

#[test]
fn a_program_that_cannot_start_is_named() {
    let scene = Scene::new();
    let mut spec = scene.spec("");
    spec.command = vec!["no-such-program".to_owned()];
    let err = Keeper::spawn(&exe(), &scene.keeper_dir(), &spec).expect_err("must fail");
    assert!(matches!(&err, SpawnError::Program { detail } if detail.contains("no-such-program")), "{err:?}");
    let Ok(Adopted::Ended(exit)) = Keeper::adopt(&scene.keeper_dir()) else { panic!("a record") };
    assert_eq!(exit.status, ExitStatus::NotStarted);

    let scene = Scene::new();
    let mut spec = scene.spec("true");
    spec.cwd = scene.dir.path().join("nowhere");
    let err = Keeper::spawn(&exe(), &scene.keeper_dir(), &spec).expect_err("must fail").to_string();
    assert!(err.contains("working folder") && err.contains("nowhere"), "{err}");
}

#[test]
fn specs_that_no_keeper_could_run_are_refused() {
    let scene = Scene::new();
    let mut spec = scene.spec("true");
    spec.exclusive = true;
    let refused = |spec: &KeeperSpec| {
        matches!(Keeper::spawn(&exe(), &scene.keeper_dir(), spec), Err(SpawnError::Invalid(_)))
    };
    assert!(refused(&spec), "exclusive without a deadline");
    spec.lease_deadline = Some(boot_now());
    let late = Keeper::spawn(&exe(), &scene.keeper_dir(), &spec).expect_err("the lease is over").to_string();
    assert!(late.contains("lease ran out"), "{late}");
    spec.command.clear();
    assert!(refused(&spec), "an empty command");
}

#[test]
fn the_environment_is_the_specs_and_little_else() {
    let scene = Scene::new();
    let mut spec = scene.spec("env; pwd; umask");
    spec.env.insert("RANK".to_owned(), "0".to_owned());
    let keeper = scene.spawn(&spec);
    keeper.wait_exit().expect("a record");
    let names = |text: &String| text.split_once('=').map(|(name, _)| name.to_owned());
    let names: Vec<_> = scene.texts().iter().filter_map(names).collect();
    assert!(names.iter().any(|name| name == "RANK") && names.iter().any(|name| name == "PATH"));
    let known = ["RANK", "PATH", "HOME", "LANG", "TMPDIR", "OUTLAST_KEEPER", "PWD", "_", "SHLVL", "OLDPWD"];
    assert!(names.iter().all(|name| known.contains(&name.as_str())), "{names:?}");
    assert!(scene.texts().contains(&scene.dir.path().to_str().expect("text").to_owned()));
}

#[test]
fn a_deep_data_folder_does_not_hinder_the_socket() {
    let scene = Scene::new();
    let deep = scene.dir.path().join("x".repeat(100)).join("y".repeat(100));
    let keeper = Keeper::spawn(&exe(), &deep, &scene.spec("sleep 600")).expect("a keeper");
    assert!(!keeper.status().expect("an answer").ended);
    keeper.stop(0).expect("stopped");
    assert_eq!(keeper.wait_exit().expect("a record").status, ExitStatus::Signal(9));
}

#[test]
fn an_agent_that_dies_loses_neither_worker_nor_output() {
    let scene = Scene::new();
    let script = "for i in $(seq 1 200); do echo line $i; sleep 0.01; done; exit 5";
    let (mut agent, keeper_pid, worker_pid) = scene.spawn_from_agent(&scene.spec(script));
    agent.kill().expect("killed");
    agent.wait().expect("waited");
    let Ok(Adopted::Running(keeper)) = Keeper::adopt(&scene.keeper_dir()) else { panic!("must run") };
    assert_eq!((keeper.pid(), keeper.worker_pid()), (keeper_pid, worker_pid));
    assert_eq!(keeper.wait_exit().expect("a record").status, ExitStatus::Code(5));
    let log = scene.log();
    assert!(log.len() == 200 && log.iter().all(|line| line.missed == 0));
    keeper.done().expect("done");
    wait_until("the keeper leaves", || !is_alive(keeper_pid));
    keeper.done().expect("harmless when it is gone");
}

#[test]
fn a_killed_keeper_takes_its_worker_along_and_adoption_ends_the_rest() {
    for wants_cgroup in [false, true] {
        let scene = Scene::new();
        let mut spec = scene.spec("setsid sleep 600 & echo $!; echo $$; sleep 600");
        if wants_cgroup && !give_cgroup(&mut spec, CgroupLimits::default()) {
            continue;
        }
        let keeper = scene.spawn(&spec);
        let grandchild = pid_in(&scene, 0);
        assert_eq!(pid_in(&scene, 1), keeper.worker_pid());
        signal(keeper.pid(), Signal::KILL);
        assert!(keeper.wait_exit().is_err(), "no record can exist");
        wait_until("the worker dies", || !is_alive(keeper.worker_pid()));
        let adopted = Keeper::adopt(&scene.keeper_dir()).expect("an answer");
        assert!(matches!(adopted, Adopted::Gone), "{adopted:?}");
        assert!(!is_alive(grandchild), "cgroup: {wants_cgroup}");
        if let Some(plan) = &spec.cgroup {
            assert!(!plan.track.path.exists(), "the cgroup must be removed");
        }
        assert!(matches!(Keeper::adopt(&scene.keeper_dir()), Ok(Adopted::Gone)), "adoption is idempotent");
        let late = Command::new(exe()).arg("keeper").arg(scene.keeper_dir()).status().expect("run");
        assert!(!late.success(), "a keeper that comes late must not start the worker");
    }
}

#[test]
fn a_stop_is_polite_first_and_then_is_not() {
    let scene = Scene::new();
    let keeper =
        scene.spawn(&scene.spec("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done"));
    wait_until("it is up", || scene.texts().len() == 1);
    keeper.stop(60_000).expect("told");
    assert_eq!(keeper.wait_exit().expect("a record").status, ExitStatus::Code(7));
    assert!(scene.texts().contains(&"bye".to_owned()), "{:?}", scene.texts());

    let scene = Scene::new();
    let keeper = scene.spawn(&scene.spec("trap '' TERM; echo up; while :; do sleep 0.01; done"));
    wait_until("it is up", || scene.texts().len() == 1);
    keeper.stop(60_000).expect("told");
    keeper.stop(100).expect("told again: only the shorter grace counts");
    let exit = keeper.wait_exit().expect("a record");
    assert!(exit.status == ExitStatus::Signal(9) && exit.detail.contains("SIGTERM"), "{exit:?}");
}

#[test]
fn nothing_that_a_worker_started_survives_it() {
    for wants_cgroup in [false, true] {
        let scene = Scene::new();
        let mut spec = scene
            .spec("setsid sh -c 'echo $$; trap \"\" TERM HUP; sleep 600; sleep 600' & sleep 0.3; exit 0");
        if wants_cgroup && !give_cgroup(&mut spec, CgroupLimits::default()) {
            continue;
        }
        let keeper = scene.spawn(&spec);
        let grandchild = pid_in(&scene, 0);
        let exit = keeper.wait_exit().expect("a record");
        assert_eq!((exit.status, exit.leftovers), (ExitStatus::Code(0), 0));
        assert!(!is_alive(grandchild) && exit.detail.contains("left behind"), "{exit:?}");
        assert!(spec.cgroup.is_none_or(|plan| !plan.track.path.exists()));
    }
}

#[test]
fn invariant_29_an_exclusive_worker_is_dead_at_its_deadline_though_the_agent_is_gone() {
    let scene = Scene::new();
    let mut spec = scene.spec("trap '' TERM; setsid sleep 600 & echo $!; while :; do sleep 0.01; done");
    give_cgroup(&mut spec, CgroupLimits::default());
    let deadline = boot_now().plus(3_000);
    (spec.exclusive, spec.lease_deadline) = (true, Some(deadline));
    let (mut agent, _, worker) = scene.spawn_from_agent(&spec);
    agent.kill().expect("killed");
    agent.wait().expect("waited");
    let grandchild = pid_in(&scene, 0);
    wait_until("the record", || ExitFile::read(&scene.keeper_dir()).expect("readable").is_some());
    let exit = ExitFile::read(&scene.keeper_dir()).expect("readable").expect("there");
    assert_eq!((exit.status, exit.fenced, exit.leftovers), (ExitStatus::Fenced, true, 0));
    assert!(!is_alive(worker) && !is_alive(grandchild));
}

#[test]
fn a_renewed_lease_moves_the_deadline_and_an_old_one_does_not_move_it_back() {
    let scene = Scene::new();
    let mut spec = scene.spec("sleep 4");
    (spec.exclusive, spec.lease_deadline) = (true, Some(boot_now().plus(3_000)));
    let keeper = scene.spawn(&spec);
    keeper.set_deadline(boot_now().plus(600_000)).expect("told");
    keeper.set_deadline(boot_now().plus(1_000)).expect("told, and ignored");
    let exit = keeper.wait_exit().expect("a record");
    assert_eq!((exit.status, exit.fenced), (ExitStatus::Code(0), false));
}

#[test]
fn out_of_memory_is_told_from_a_kill() {
    let scene = Scene::new();
    let mut spec = scene.spec("exec tail /dev/zero");
    if !Cgroups::detect().can_limit_memory {
        eprintln!("skipped: {}", Cgroups::detect().why_not);
        return;
    }
    let limits =
        CgroupLimits { memory_bytes: Some(32 << 20), cpu_millis: Some(500), ..CgroupLimits::default() };
    assert!(give_cgroup(&mut spec, limits));
    let exit = scene.spawn(&spec).wait_exit().expect("a record");
    assert!(exit.status == ExitStatus::OutOfMemory && exit.detail.contains("lack of memory"), "{exit:?}");
}

#[test]
fn a_stopped_keeper_is_not_taken_for_a_dead_one() {
    let scene = Scene::new();
    let keeper = scene.spawn(&scene.spec("sleep 600"));
    signal(keeper.pid(), Signal::STOP);
    let answer = Keeper::adopt(&scene.keeper_dir());
    assert!(matches!(answer, Err(AdoptError::Unresponsive { .. })), "{answer:?}");
    signal(keeper.pid(), Signal::CONT);
    assert!(matches!(Keeper::adopt(&scene.keeper_dir()), Ok(Adopted::Running(_))));
    keeper.stop(0).expect("stopped");
    keeper.wait_exit().expect("a record");
}

#[test]
fn a_flood_of_output_is_bounded_and_its_gap_is_visible() {
    let scene = Scene::new();
    let mut spec = scene.spec("seq 1 300000");
    (spec.log_segment_bytes, spec.log_segments_max) = (256 << 10, 4);
    let exit = scene.spawn(&spec).wait_exit().expect("a record");
    assert_eq!(exit.last_lines.last().map(String::as_str), Some("300000"));
    let log = scene.log();
    assert!(log[0].missed > 0 && log.last().map(|line| line.seq) == Some(300_000));
    assert_eq!(log.iter().map(|line| 1 + line.missed).sum::<u64>(), 300_000);
    assert!(size_of_dir(&scene.keeper_dir().join("log")) < 3 << 20);
}

fn size_of_dir(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.metadata().map_or(0, |meta| meta.len()))
        .sum()
}

#[test]
fn folders_and_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let keeper = scene.spawn(&scene.spec("sleep 600"));
    let mode = |name: &str| {
        std::fs::metadata(scene.keeper_dir().join(name)).expect(name).permissions().mode() & 0o777
    };
    assert_eq!((mode("."), mode("spec.json"), mode("keeper.sock") & 0o077), (0o700, 0o600, 0));
    assert!(process_start_time(keeper.pid()).is_some());
    keeper.stop(0).expect("stopped");
    keeper.wait_exit().expect("a record");
    std::fs::remove_dir_all(scene.keeper_dir()).expect("removed");
    wait_until("the keeper leaves with its folder", || !is_alive(keeper.pid()));
}

#[test]
fn what_could_not_be_killed_is_found_again_by_its_name_and_nobody_else_is_touched() {
    let scene = Scene::new();
    let exit = scene.run("exit 0");
    assert_eq!(Keeper::end_leftovers(&scene.keeper_dir(), &exit).map_err(|err| err.to_string()), Ok(()));
    // Neither has the worker's mark, as after `env -i`.
    let mut left = Command::new("sleep").arg("1000").spawn().expect("sleeps");
    let mut stranger = Command::new("sleep").arg("1000").spawn().expect("sleeps");
    let name = |child: &Child| LeftProcess {
        pid: child.id(),
        start_time: process_start_time(child.id()).expect("alive"),
    };
    let earlier = LeftProcess { start_time: 1, ..name(&stranger) };
    let exit = ExitFile { leftovers: 2, left: vec![name(&left), earlier], ..exit };
    assert_eq!(Keeper::end_leftovers(&scene.keeper_dir(), &exit).map_err(|err| err.to_string()), Ok(()));
    wait_until("it is killed", || left.try_wait().expect("ours").is_some());
    assert!(stranger.try_wait().expect("ours").is_none(), "its pid only was the same");
    stranger.kill().expect("ours");
    stranger.wait().expect("ours");
}
