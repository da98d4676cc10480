//! What a tenant had of late, in integers alone.
//!
//! A lease of `memory` bytes that was held from `start` to `end` counts at `now`, with the half-life `h`,
//!
//! ```text
//! memory * integral from start to end of 2^(-(now - t) / h) dt
//!   = memory * h / ln 2 * (2^(-(now - end) / h) - 2^(-(now - start) / h))
//! ```
//!
//! in byte-milliseconds: what was held a half-life ago counts half, and whoever holds the same for ever
//! comes to `memory * h / ln 2`. Powers are fixed-point numbers of 62 bits behind the point, put together
//! from the square roots of a half, so that every machine computes the same number. The result is within
//! 0.1 % of the formula for what was held for a second or longer and half-lives up to 30 days.

use crate::time::{BootMs, Ms};

/// How often what was had of late is looked at: between two looks it stands still.
pub(crate) const LOOK_MS: u64 = 60_000;

const POINT: u32 = 62;
const ONE: u128 = 1 << POINT;
/// Bits of the fraction of a half-life that are told apart.
const FRACTION_BITS: u32 = 48;
/// 1 / ln 2 with 30 bits behind the point.
const PER_LN_2: u64 = 1_549_082_005;
const PER_LN_2_POINT: u32 = 30;

/// The square root of a half, the square root of that, and so on.
const ROOTS: [u128; FRACTION_BITS as usize] = roots();

const fn roots() -> [u128; FRACTION_BITS as usize] {
    let mut roots = [0; FRACTION_BITS as usize];
    let mut root = ONE / 2;
    let mut place = 0;
    while place < roots.len() {
        root = (root << POINT).isqrt();
        roots[place] = root;
        place += 1;
    }
    roots
}

/// The moment of the last look before `now`.
pub(crate) fn last_look(now: BootMs) -> BootMs {
    BootMs(now.0 - now.0 % LOOK_MS)
}

/// What `memory` bytes held from `start` to `end` count at `now`, in byte-milliseconds.
pub(crate) fn decayed(memory: u64, start: BootMs, end: BootMs, now: BootMs, half_life: Ms) -> u128 {
    let end = end.min(now);
    if end <= start || half_life == Ms(0) {
        return 0;
    }
    let weight = half_to_the(now - end, half_life) - half_to_the(now - start, half_life);
    let (length, point) = times(weight, POINT, half_life.0);
    let (length, point) = times(length, point + PER_LN_2_POINT, PER_LN_2);
    let (amount, point) = times(length, point, memory);
    amount >> point
}

/// A product with as many bits behind the point as there is room for.
fn times(number: u128, point: u32, factor: u64) -> (u128, u32) {
    let too_long = 64_u32.saturating_sub(number.leading_zeros()).min(point);
    let product = (number >> too_long).saturating_mul(factor.into());
    (product, point - too_long)
}

/// 2^(-age / half_life).
fn half_to_the(age: Ms, half_life: Ms) -> u128 {
    let halvings = age.0 / half_life.0;
    let Some(halvings) = u32::try_from(halvings).ok().filter(|n| *n < POINT) else {
        return 0;
    };
    let fraction = (u128::from(age.0 % half_life.0) << FRACTION_BITS) / u128::from(half_life.0);
    let mut power = ONE;
    for (place, root) in (1..).zip(ROOTS) {
        if fraction >> (FRACTION_BITS - place) & 1 == 1 {
            power = (power * root) >> POINT;
        }
    }
    power >> halvings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const HOUR: u64 = 3_600_000;

    /// Memory, start, end, now, half-life; byte-seconds by the formula in floating point of 53 bits.
    const EXACT: &[(u64, u64, u64, u64, u64, f64)] = &[
        (GIB, 0, HOUR, HOUR, HOUR, 2_788_347_608_423.77),
        (24 * GIB, 0, 60_000, 60_000, HOUR, 1_537_291_386_211.49),
        (GIB, 0, 1_000, HOUR, HOUR, 536_922_600.117),
        (
            80 * GIB,
            0,
            24 * HOUR,
            24 * HOUR,
            HOUR,
            446_135_590_756_047.6,
        ),
        (
            GIB,
            100,
            7_200_100,
            10 * HOUR,
            2 * HOUR,
            348_546_806_512.322,
        ),
        (8 * GIB, 0, 1_000, 24 * HOUR, 720 * HOUR, 8_393_741_337.79),
        (
            1 << 40,
            0,
            24 * HOUR,
            48 * HOUR,
            168 * HOUR,
            8.191_898_398_536_638e16,
        ),
        (GIB, 0, 60_000, 25 * HOUR, HOUR, 1_931.133),
        (GIB, 0, 60_000, 240 * HOUR, HOUR, 0.0),
        // Nothing was held, or it is all forgotten at once.
        (GIB, 5_000, 5_000, HOUR, HOUR, 0.0),
        (GIB, 5_000, 4_000, HOUR, HOUR, 0.0),
        (GIB, 0, HOUR, HOUR, 0, 0.0),
        // What is to come does not count yet.
        (GIB, 0, 2 * HOUR, HOUR, HOUR, 2_788_347_608_423.77),
    ];

    #[test]
    fn the_decay_is_within_a_thousandth_of_the_formula() {
        for &(memory, start, end, now, half_life, exact) in EXACT {
            let (start, end, now) = (BootMs(start), BootMs(end), BootMs(now));
            let got = decayed(memory, start, end, now, Ms(half_life)) as f64 / 1000.0;
            let off = (got - exact).abs();
            assert!(off <= exact / 1000.0, "{got} is not {exact}");
        }
    }

    #[test]
    fn what_was_held_a_half_life_ago_counts_half() {
        let minute = |now| decayed(GIB, BootMs(0), BootMs(60_000), BootMs(now), Ms(HOUR));
        let (fresh, old) = (minute(60_000), minute(60_000 + HOUR));
        assert!(
            fresh.abs_diff(2 * old) <= fresh / 1_000_000,
            "{fresh} {old}"
        );
    }

    #[test]
    fn nothing_overflows() {
        let far = BootMs(u64::MAX);
        for half_life in [1, HOUR, u64::MAX / 4] {
            decayed(u64::MAX, BootMs(0), far, far, Ms(half_life));
        }
        assert_eq!(last_look(BootMs(119_999)), BootMs(60_000));
    }
}
