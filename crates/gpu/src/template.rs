//! Repetition in WGSL: names that a loop's index is part of, so that values which a kernel holds in registers need no
//! array. A compiler that doesn't unroll the loops around an indexed array places it in memory.

use std::fmt::Write;

/// A module's constants.
type Constants<'a> = [(&'a str, u32)];

/// Writes the lines between `#for i in COUNT` and its `#end` COUNT times, with `$i` replaced by 0, 1, …; blocks may
/// be nested. i is one letter. COUNT is a number or a constant, followed by any `* FACTOR` and `/ DIVISOR`; `1..COUNT`
/// starts at 1. Comments are left out.
///
/// # Panics
/// For a block without an end, and for an unknown constant.
pub(crate) fn expand(text: &str, constants: &Constants) -> String {
    if !text.contains("#for ") {
        return text.to_string();
    }
    let lines: Vec<&str> = text.lines().collect();
    let mut expanded = String::with_capacity(4 * text.len());
    write_lines(&lines, constants, &mut Vec::new(), &mut expanded);
    expanded
}

fn write_lines(
    mut lines: &[&str],
    constants: &Constants,
    indices: &mut Vec<(char, u32)>,
    out: &mut String,
) {
    while let [line, rest @ ..] = lines {
        lines = rest;
        if line.trim_start().starts_with("//") {
            continue;
        }
        let Some(head) = line.trim_start().strip_prefix("#for ") else {
            write_line(line, indices, out);
            continue;
        };
        let (index, count) = head.split_once(" in ").expect("#for i in COUNT");
        let (start, count) = count.split_once("..").unwrap_or(("0", count));
        let (block, after) = split_at_end(rest);
        for value in evaluate(start, constants)..evaluate(count, constants) {
            indices.push((index.chars().next().unwrap_or_default(), value));
            write_lines(block, constants, indices, out);
            indices.pop();
        }
        lines = after;
    }
}

/// The lines before the `#end` of the block that they begin in, and those after it.
fn split_at_end<'a, 'b>(lines: &'b [&'a str]) -> (&'b [&'a str], &'b [&'a str]) {
    let mut open = 1;
    for (at, line) in lines.iter().enumerate() {
        match line.trim_start() {
            line if line.starts_with("#for ") => open += 1,
            "#end" => open -= 1,
            _ => {}
        }
        if open == 0 {
            return (&lines[..at], &lines[at + 1..]);
        }
    }
    panic!("#for without #end");
}

fn write_line(line: &str, indices: &[(char, u32)], out: &mut String) {
    let mut parts = line.split('$');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let name = part.chars().next().unwrap_or_default();
        let index = indices.iter().rev().find(|(other, _)| *other == name);
        let (_, value) = index.expect("an index of a #for around it");
        // Writing to a string can't fail.
        let _ = write!(out, "{value}{}", &part[name.len_utf8()..]);
    }
    out.push('\n');
}

fn evaluate(count: &str, constants: &Constants) -> u32 {
    let value = |word: &str| {
        let constant = constants.iter().find(|(name, _)| *name == word);
        let number = constant.map_or_else(|| word.parse().ok(), |(_, value)| Some(*value));
        number.unwrap_or_else(|| panic!("{word} is not a constant"))
    };
    let mut words = count.split_whitespace();
    let mut result = value(words.next().unwrap_or_default());
    while let (Some(operator), Some(word)) = (words.next(), words.next()) {
        match operator {
            "*" => result *= value(word),
            _ => result /= value(word),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_blocks_stays() {
        assert_eq!(expand("let a = 1u; // $\n", &[]), "let a = 1u; // $\n");
    }

    #[test]
    fn blocks_are_nested_and_counts_computed() {
        let text =
            "a\n// $i\n#for i in SIDE / 4\n  #for q in 2\n    let x$i_$q = ${i};\n  #end\n#end\nb\n"
                .replace("${i}", "$i");
        let expected =
            "a\n    let x0_0 = 0;\n    let x0_1 = 0;\n    let x1_0 = 1;\n    let x1_1 = 1;\nb\n";
        assert_eq!(expand(&text, &[("SIDE", 8)]), expected);
        let text = "#for p in EACH * DEPTH / SIDE\n$pu\n#end\n";
        let constants = [("EACH", 4), ("DEPTH", 6), ("SIDE", 8)];
        assert_eq!(expand(text, &constants), "0u\n1u\n2u\n");
        assert_eq!(expand("#for i in 0\n$i\n#end\n", &[]), "");
        assert_eq!(expand("#for i in 1..3\n$i\n#end\n", &[]), "1\n2\n");
    }

    #[test]
    #[should_panic(expected = "WIDE is not a constant")]
    fn an_unknown_constant_is_a_fault_of_the_kernel() {
        expand("#for i in WIDE\n#end\n", &[]);
    }

    #[test]
    #[should_panic(expected = "#for without #end")]
    fn a_block_needs_an_end() {
        expand("#for i in 2\n", &[]);
    }
}
