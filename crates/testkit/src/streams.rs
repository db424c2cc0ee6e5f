//! Streams between agents and coordinators: in order and complete, or broken; each end hears of that in its own time.

use crate::event::{DownMsg, Host, Msg, UpMsg, What};
use crate::world::World;

/// A stream between an agent and a coordinator: in order and complete, or broken.
pub(crate) struct Stream {
    agent: usize,
    coord: usize,
    /// When the last message of each direction arrives.
    up_at: u64,
    down_at: u64,
    broken: bool,
}

/// A broken link is noticed by its keep-alive.
const BREAK_US: (u64, u64) = (500_000, 2_500_000);
const RETRANSMIT_US: (u64, u64) = (200_000, 900_000);

impl World {
    pub(crate) fn open_stream(&mut self, a: usize, c: usize) -> u64 {
        let number = self.id();
        let stream = Stream { agent: a, coord: c, up_at: 0, down_at: 0, broken: false };
        self.streams.insert(number, stream);
        number
    }

    pub(crate) fn stream_up(&mut self, _: usize, number: u64, msg: UpMsg) {
        self.stream_send(number, true, |number| Msg::Up(number, msg));
    }

    pub(crate) fn stream_down(&mut self, _: usize, number: u64, msg: DownMsg) {
        self.stream_send(number, false, |number| Msg::Down(number, msg));
    }

    fn stream_send(&mut self, number: u64, up: bool, msg: impl FnOnce(u64) -> Msg) {
        let Some(stream) = self.streams.get_mut(&number).filter(|stream| !stream.broken) else { return };
        let (agent, coord) = (Host::Agent(stream.agent), Host::Coord(stream.coord));
        let (from, to) = if up { (agent, coord) } else { (coord, agent) };
        let is_there = if up { self.coords[stream.coord].up } else { self.agents[stream.agent].up };
        if !is_there || self.net.is_cut(from, to) || self.rng.ppm(self.net.breaks_ppm) {
            return self.break_stream(number);
        }
        let mut delay = self.net.delay(&mut self.rng);
        if self.net.loss > 0 && self.rng.per_mille(self.net.loss) {
            delay += self.rng.within(RETRANSMIT_US.0, RETRANSMIT_US.1);
        }
        let last = if up { &mut stream.up_at } else { &mut stream.down_at };
        *last = (*last + 1).max(self.now + delay);
        let at = *last;
        self.after_any(to, at - self.now, What::Msg(from, msg(number)));
    }

    /// Both ends notice, each in its own time.
    fn break_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.remove(&number) else { return };
        self.cover.broken_streams += 1;
        for (from, to) in [
            (Host::Coord(stream.coord), Host::Agent(stream.agent)),
            (Host::Agent(stream.agent), Host::Coord(stream.coord)),
        ] {
            let late = self.rng.within(BREAK_US.0, BREAK_US.1);
            self.after_any(to, late, What::Msg(from, Msg::Closed(number)));
        }
    }

    /// One end closes it; the other hears of it, sooner or later, after what was said before.
    pub(crate) fn reset_stream(&mut self, number: u64, by: Host) {
        let Some(stream) = self.streams.remove(&number) else { return };
        let (agent, coord) = (Host::Agent(stream.agent), Host::Coord(stream.coord));
        let (to, last) = if by == agent { (coord, stream.up_at) } else { (agent, stream.down_at) };
        let late = if self.net.is_cut(by, to) {
            self.rng.within(BREAK_US.0, BREAK_US.1)
        } else {
            self.net.delay(&mut self.rng)
        };
        let at = (last + 1).max(self.now + late);
        self.after_any(to, at - self.now, What::Msg(by, Msg::Closed(number)));
    }
}
