//! How many laps a key goes round the ring before it stops at a server: drawn by the key and the
//! server, in whole numbers, so that all nodes agree.

use super::mix;

/// The mean number of laps. The load of a server that has many neighbours differs from its share by
/// 1/sqrt(2 * LAPS) in the mean, 8.8 %; a key looks at that many servers.
pub const LAPS: u64 = 64;

/// Binary logarithms of 1 + i/256 in units of 2^-24.
const LOG2: [u32; 257] = {
    let mut table = [0; 257];
    let mut i = 0;
    while i < 256 {
        // By squaring: each time the square is 2 or more, the next binary digit is 1.
        let mut x = (256 + i as u64) << 23;
        let mut log = 0;
        let mut digit = 0;
        while digit < 24 {
            x = ((x as u128 * x as u128) >> 31) as u64;
            log <<= 1;
            if x >= 1 << 32 {
                x >>= 1;
                log |= 1;
            }
            digit += 1;
        }
        table[i] = log;
        i += 1;
    }
    table[256] = 1 << 24;
    table
};

/// Laps of a key past a server, given a number that is spread over 64 bits: those of an exponential
/// law with the mean [`LAPS`], rounded down. At most 2839.
#[inline]
fn laps(number: u64) -> u64 {
    let number = number | 1;
    let zeros = number.leading_zeros();
    let mantissa = number << zeros;
    let (i, rest) = ((mantissa >> 55 & 0xff) as usize, mantissa >> 39 & 0xffff);
    let (low, high) = (u64::from(LOG2[i]), u64::from(LOG2[i + 1]));
    let log = low + (((high - low) * rest) >> 16);
    // -log2(number / 2^64) in units of 2^-24, times ln 2.
    let log = ((u64::from(zeros) + 1) << 24) - log;
    const LN2: u64 = 11_629_080;
    (log * LN2 * LAPS) >> 48
}

/// Laps of a key past a server.
#[inline]
pub fn laps_of(key: u64, server: u64) -> u64 {
    laps(mix(key ^ server.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_are_those_of_the_logarithm() {
        for n in 0..100_000u64 {
            let number = mix(n) >> (n % 60);
            let exact = -((number | 1) as f64 / 2f64.powi(64)).ln() * LAPS as f64;
            let near = (exact - 0.01).floor() as i64..=(exact + 0.01).floor() as i64;
            assert!(near.contains(&(laps(number) as i64)), "{number}: {} {exact}", laps(number));
        }
        assert_eq!((laps(0), laps(u64::MAX)), (2839, 0));
    }

    #[test]
    fn the_mean_is_as_said() {
        let sum: u64 = (0..100_000).map(|n| laps_of(n, 7)).sum();
        let mean = sum as f64 / 100_000.0;
        assert!((mean - (LAPS as f64 - 0.5)).abs() < 1.0, "{mean}");
    }
}
