//! What is dropped on its way out of a node, as a classic BPF program for `tc`: no nftables, iptables or netem is needed,
//! only the kernel's `cls_bpf`.

use std::net::Ipv4Addr;

/// Drops packets to these addresses, and others by chance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) blocked: Vec<Ipv4Addr>,
    pub(crate) loss_per_mille: u32,
}

// Opcodes of classic BPF, and where things are in an Ethernet frame.
const LOAD_HALF: u32 = 0x28;
const LOAD_WORD: u32 = 0x20;
const JUMP_EQUAL: u32 = 0x15;
const JUMP_AT_LEAST: u32 = 0x35;
const RETURN: u32 = 0x06;
const ETHER_TYPE_AT: u32 = 12;
const DESTINATION_AT: u32 = 30;
const IPV4: u32 = 0x0800;
/// `SKF_AD_OFF + SKF_AD_RANDOM`: a load from here is a random number.
const RANDOM: u32 = 0xffff_f038;
/// `TC_ACT_SHOT`, and `TC_ACT_UNSPEC`: go on as if there were no filter.
const DROP: u32 = 2;
const PASS: u32 = u32::MAX;

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocked.is_empty() && self.loss_per_mille == 0
    }

    /// As `tc filter … bpf bytecode` takes it.
    pub(crate) fn bytecode(&self) -> String {
        let code = self.program();
        let words: Vec<String> = code.iter().map(|(op, t, f, k)| format!("{op} {t} {f} {k}")).collect();
        format!("{},{}", code.len(), words.join(","))
    }

    /// Instructions: what, how many to skip when true, when false, and a number.
    fn program(&self) -> Vec<(u32, u8, u8, u32)> {
        let blocked = self.blocked.len() as u8;
        // The program ends: …, return PASS, return DROP.
        let mut code = vec![(LOAD_HALF, 0, 0, ETHER_TYPE_AT), (JUMP_EQUAL, 0, blocked + 3, IPV4)];
        code.push((LOAD_WORD, 0, 0, DESTINATION_AT));
        for (i, address) in (0_u8..).zip(&self.blocked) {
            // Behind it: the other addresses, two for chance, and PASS.
            code.push((JUMP_EQUAL, blocked - i - 1 + 3, 0, u32::from(*address)));
        }
        code.push((LOAD_WORD, 0, 0, RANDOM));
        code.push((JUMP_AT_LEAST, 1, 0, self.threshold()));
        code.extend([(RETURN, 0, 0, PASS), (RETURN, 0, 0, DROP)]);
        code
    }

    /// Random numbers from here on are losses.
    fn threshold(&self) -> u32 {
        let share = u64::from(self.loss_per_mille.min(1_000)) * u64::from(u32::MAX) / 1_000;
        u32::MAX - share as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would: is a packet to `to` dropped when chance gives `random`?
    fn drops(filter: &Filter, ether_type: u32, to: Ipv4Addr, random: u32) -> bool {
        let code = filter.program();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let (op, yes, no, k) = code[at];
            at += 1;
            let jump = |truth: bool| usize::from(if truth { yes } else { no });
            match op {
                LOAD_HALF => loaded = ether_type,
                LOAD_WORD => loaded = if k == RANDOM { random } else { u32::from(to) },
                JUMP_EQUAL => at += jump(loaded == k),
                JUMP_AT_LEAST => at += jump(loaded >= k),
                _ => return k == DROP,
            }
        }
    }

    #[test]
    fn a_filter_drops_what_it_names_and_its_share_of_the_rest() {
        let [a, b, c] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 213, 77, last));
        let filter = Filter { blocked: vec![a, b], loss_per_mille: 0 };
        assert!(drops(&filter, IPV4, a, 0) && drops(&filter, IPV4, b, 0));
        assert!(!drops(&filter, IPV4, c, u32::MAX - 1));
        assert!(!drops(&filter, 0x0806, a, u32::MAX - 1), "not ARP");
        let lossy = Filter { blocked: vec![], loss_per_mille: 250 };
        assert!(drops(&lossy, IPV4, c, u32::MAX / 100 * 76) && !drops(&lossy, IPV4, c, u32::MAX / 100 * 74));
        let all = Filter { blocked: vec![], loss_per_mille: 1_000 };
        assert!(drops(&all, IPV4, c, 0));
    }

    #[test]
    fn bytecode_is_written_as_tc_reads_it() {
        let filter = Filter { blocked: vec![Ipv4Addr::new(10, 99, 77, 1)], loss_per_mille: 0 };
        assert_eq!(
            filter.bytecode(),
            "8,40 0 0 12,21 0 4 2048,32 0 0 30,21 3 0 174279937,32 0 0 4294963256,53 1 0 4294967295,6 0 0 4294967295,6 0 0 2"
        );
    }
}
