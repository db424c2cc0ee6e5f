//! Random numbers, for ids and for spreading things in time.

use std::io;

/// # Errors
/// The system has none to give, which does not happen after boot.
#[cfg(not(feature = "simulated"))]
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::other)
}

#[cfg(feature = "simulated")]
thread_local! {
    static STATE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// What all numbers of this thread follow from now on.
#[cfg(feature = "simulated")]
pub fn seed(seed: u64) {
    STATE.set(seed);
}

/// # Errors
/// None; as the real one's.
#[cfg(feature = "simulated")]
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    for part in bytes.chunks_mut(8) {
        // splitmix64
        let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        STATE.set(state);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..part.len()]);
    }
    Ok(())
}

/// # Errors
/// As [`fill`].
pub fn number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
