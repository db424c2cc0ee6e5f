//! Request ids: what makes a retry the same request.

/// 128 random bits as hex.
///
/// # Panics
/// When the operating system has no randomness to give, which does not happen after boot.
pub fn new_request_id() -> String {
    let mut bytes = [0_u8; 16];
    outlast_host::random::fill(&mut bytes).expect("the kernel gives random bytes once it has booted");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_valid_and_differ() {
        let (first, second) = (new_request_id(), new_request_id());
        assert_ne!(first, second);
        assert_eq!(first.len(), 32);
        assert!(first.parse::<outlast_types::RequestId>().is_ok());
    }
}
