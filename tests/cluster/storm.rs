//! `kill -9` at random of workers, keepers, agents, nodes and coordinators while jobs do nothing but save; afterwards the
//! newest sealed checkpoint of each is, bit for bit, what its program saved. `OUTLAST_SEED` repeats the choices,
//! `OUTLAST_STORM_SECONDS` makes it longer (`cargo xtask checkpoints MINUTES`).

use std::time::{Duration, Instant};

use outlast_local::{Builder, Found};
use rustix::process::{Pid, Signal, kill_process};

use super::harness::{Outlast, exe, wait_for};
use super::saver::{Saver, check_all, sealed_step, stop_file, wait_next_seal};

const SECONDS_DEFAULT: u64 = 20;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
    fn up_to(&mut self, ms: usize) -> Duration {
        Duration::from_millis(self.below(ms) as u64)
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// One kill, and what was killed started again as its supervisor would.
fn strike(outlast: &mut Outlast, random: &mut Random) -> String {
    let pause = random.up_to(1_000);
    let is_keeper = |found: &Found| found.command.contains(" keeper ");
    let is_worker = |found: &Found| found.command.contains("saver_program") && !is_keeper(found);
    match random.below(5) {
        kind @ (0 | 1) => {
            let mut all = outlast.cluster.processes();
            all.retain(|found| if kind == 0 { is_worker(found) } else { is_keeper(found) });
            if all.is_empty() {
                return "nobody".to_owned();
            }
            let victim = &all[random.below(all.len())];
            let _ = kill_process(Pid::from_raw(victim.pid).expect("a pid"), Signal::KILL);
            if kind == 0 { "a worker" } else { "a keeper" }.to_owned()
        }
        kind => {
            let of = if kind == 4 { &mut outlast.cluster.coordinators } else { &mut outlast.cluster.agents };
            let chosen = random.below(of.len());
            let victim = &mut of[chosen];
            if kind == 3 {
                victim.kill_tree()
            } else {
                victim.kill()
            };
            std::thread::sleep(pause);
            victim.start().expect("it starts again");
            format!("{} {}", if kind == 3 { "all of node" } else { "the daemon" }, victim.name)
        }
    }
}

#[test]
fn storm_of_kills_leaves_every_newest_sealed_checkpoint_bit_for_bit() {
    let seconds = number("OUTLAST_STORM_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed = number("OUTLAST_SEED").unwrap_or(now.as_nanos() as u64) | 1;
    println!("OUTLAST_SEED={seed} OUTLAST_STORM_SECONDS={seconds}");
    let mut random = Random(seed);
    let builder = Builder::new(exe()).coordinators(3).agents(3).agent_args(&["--cpus", "4"]);
    let mut outlast = Outlast::start_with(builder);
    let folder = outlast.cluster.folder().to_owned();
    let savers = ["storm-a", "storm-b"].map(|name| Saver { workers: 2, ..Saver::new(name, &folder) });
    let jobs: Vec<String> = savers.iter().map(|saver| outlast.submit(&saver.spec())).collect();
    for job in &jobs {
        wait_next_seal(&outlast, job, 0);
    }
    let began = Instant::now();
    let mut strikes = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        let struck = strike(&mut outlast, &mut random);
        strikes += 1;
        println!("{:5.1} s: killed {struck}", began.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(300) + random.up_to(1_200));
    }
    for (job, saver) in jobs.iter().zip(&savers) {
        // Trouble is over: it goes on.
        let sealed = wait_for("an answer", || Some(sealed_step(&outlast, job)).filter(|step| *step > 0));
        let last = wait_next_seal(&outlast, job, sealed);
        std::fs::write(stop_file(&folder, saver.name), "").expect("written");
        let done = outlast.wait_success(job);
        println!("{}: {} attempts, step {last}, after {strikes} kills", saver.name, done.attempts().len());
        check_all(&outlast, job, saver);
    }
    outlast.assert_nothing_left();
}
