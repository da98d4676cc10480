//! Numbers that look random and follow from a seed alone.

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `options`, which must not be empty.
    pub fn pick<T: Clone>(&mut self, options: &[T]) -> T {
        let place = self.below(options.len() as u64);
        options[place as usize].clone()
    }

    /// One of `options`, each as likely as its weight says.
    pub fn weighted<T: Clone>(&mut self, options: &[(u64, T)]) -> T {
        let total = options.iter().map(|(weight, _)| weight).sum();
        let mut left = self.below(total);
        for (weight, option) in options {
            if left < *weight {
                return option.clone();
            }
            left -= weight;
        }
        unreachable!("the roll is below the sum of the weights")
    }

    /// `Some` of `options` in `percent` of 100 cases.
    pub fn maybe<T: Clone>(&mut self, percent: u64, options: &[T]) -> Option<T> {
        self.chance(percent).then(|| self.pick(options))
    }
}
