//! Numbers in messages.

/// A number for messages, to seven digits. The standard library's formatting, which is exact for every float, would add
/// 22 kB to every engine.
pub fn format_number(value: f64) -> String {
    let size = value.abs();
    let sign = if value < 0.0 { "-" } else { "" };
    if value.is_nan() {
        return "NaN".to_string();
    }
    if size.is_infinite() {
        return format!("{sign}infinity");
    }
    if size == 0.0 {
        return "0".to_string();
    }
    let (mut leading, mut exponent) = (size, 0i32);
    while leading >= 10.0 {
        leading /= 10.0;
        exponent += 1;
    }
    while leading < 1.0 {
        leading *= 10.0;
        exponent -= 1;
    }
    // 9.9999999 rounds up to 10.
    let mut digits = (leading * 1e6).round() as u32;
    if digits == 10_000_000 {
        digits = 1_000_000;
        exponent += 1;
    }
    let digits = digits.to_string();
    let digits = digits.trim_end_matches('0');
    match exponent {
        -4..=-1 => format!(
            "{sign}0.{:0>width$}",
            digits,
            width = digits.len() + exponent.unsigned_abs() as usize - 1
        ),
        0..=5 => {
            let whole = exponent as usize + 1;
            if digits.len() <= whole {
                format!("{sign}{digits:0<whole$}")
            } else {
                format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
            }
        }
        _ if digits.len() == 1 => format!("{sign}{digits}e{exponent}"),
        _ => format!("{sign}{}.{}e{exponent}", &digits[..1], &digits[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (10.0, "10"),
            (70_000.0, "70000"),
            (123_456.7, "123456.7"),
            (1_000_000.0, "1e6"),
            (1_234_567.0, "1.234567e6"),
            (123.456, "123.456"),
            (9.999_999_99, "10"),
            (0.1, "0.1"),
            (0.025, "0.025"),
            (0.000_123, "0.000123"),
            (0.000_012, "1.2e-5"),
            (1e10, "1e10"),
            (-3.4e38, "-3.4e38"),
            (f64::MAX, "1.797693e308"),
            (f64::MIN_POSITIVE, "2.225074e-308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "infinity"),
            (f64::NEG_INFINITY, "-infinity"),
        ] {
            assert_eq!(format_number(value), text);
        }
        assert_eq!(format_number(f64::from(0.1f32)), "0.1");
    }

    #[test]
    fn seven_digits_are_right() {
        for exponent in -300..300 {
            let value = 1.234_567_8 * 10f64.powi(exponent);
            let read: f64 = format_number(value).parse().unwrap();
            assert!((read / value - 1.0).abs() < 1e-6, "{value}");
        }
    }
}
