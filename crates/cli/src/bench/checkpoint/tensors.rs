//! The bytes that are saved: tensors of 16 MiB that nothing can compress or share.

/// One tensor.
const TENSOR_BYTES: u64 = 16 << 20;

pub(super) struct Tensors {
    tensors: Vec<Vec<u8>>,
}

impl Tensors {
    /// `size_bytes` in all; the last one may be shorter.
    pub(super) fn new(size_bytes: u64) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut tensors = Vec::new();
        let mut left = size_bytes;
        while left > 0 {
            let bytes = left.min(TENSOR_BYTES);
            left -= bytes;
            tensors.push(random.bytes(bytes as usize));
        }
        Self { tensors }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.tensors.iter().map(Vec::as_slice)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.len() as u64).sum()
    }

    /// As a training step does: other bytes than those that were saved before.
    pub(super) fn change(&mut self, step: u64) {
        for tensor in &mut self.tensors {
            let word = step.to_le_bytes();
            let len = tensor.len().min(word.len());
            tensor[..len].copy_from_slice(&word[..len]);
        }
    }

    /// The measure of a save's stall: every byte moved once, into memory that is there already.
    pub(super) fn copy_into(&self, target: &mut Tensors) {
        for (from, to) in self.tensors.iter().zip(&mut target.tensors) {
            to.copy_from_slice(from);
        }
    }
}

/// xorshift64*: fast, and good enough against compression.
struct Random(u64);

impl Random {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count.next_multiple_of(8));
        while bytes.len() < count {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            bytes.extend(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensors_have_the_size_and_no_two_are_the_same() {
        let tensors = Tensors::new(2 * TENSOR_BYTES + 5);
        let lens: Vec<usize> = tensors.iter().map(<[u8]>::len).collect();
        assert_eq!(lens, [TENSOR_BYTES as usize, TENSOR_BYTES as usize, 5]);
        assert_eq!(tensors.size_bytes(), 2 * TENSOR_BYTES + 5);
        let first: Vec<&[u8]> = tensors.iter().map(|tensor| &tensor[..5]).collect();
        assert!(first[0] != first[1] && first[1] != first[2]);
    }
}
