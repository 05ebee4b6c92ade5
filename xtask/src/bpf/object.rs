//! A BPF object file: its programs, how long they are and how much stack they use.
//!
//! ELF-64 little-endian (System V gABI), relocations and instructions as in the kernel's
//! Documentation/bpf/standardization/instruction-set.rst.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};

const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;
const RELOCATION: usize = 16;
const INSTRUCTION: usize = 8;

const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_REL: u32 = 9;
const SHF_EXECINSTR: u64 = 4;
const STT_FUNC: u8 = 2;

/// Where functions live that are not programs themselves: `.text`, `.text.unlikely`.
const FUNCTIONS: &str = ".text";

/// The verifier counts a frame in steps of 32 bytes.
const FRAME_STEP: u64 = 32;

/// One program, with all functions that it can reach.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// Instructions of the program and of each function it reaches, once.
    pub(crate) instructions: u64,
    /// Bytes of stack on the deepest way through its calls.
    pub(crate) stack: u64,
}

/// A parsed object.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
    functions: Vec<Function>,
    /// Targets of calls that the linker left open: (section, offset) of the instruction.
    calls: BTreeMap<(usize, u64), (usize, u64)>,
}

#[derive(Clone, Debug)]
struct Section {
    name: String,
    kind: u32,
    flags: u64,
    offset: usize,
    size: usize,
    info: usize,
    link: usize,
}

#[derive(Clone, Debug)]
struct Function {
    name: String,
    section: usize,
    start: u64,
    size: u64,
}

impl<'a> Object<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        if !bytes.starts_with(b"\x7fELF\x02\x01") {
            bail!("not a little-endian 64-bit ELF file");
        }
        let mut object = Self {
            bytes,
            sections: sections(bytes)?,
            functions: Vec::new(),
            calls: BTreeMap::new(),
        };
        let symbols = object
            .sections
            .iter()
            .find(|section| section.kind == SHT_SYMTAB);
        let symbols = symbols.context("the object has no symbols")?.clone();
        let names = object
            .sections
            .get(symbols.link)
            .context("symbols without names")?
            .clone();
        object.functions = functions(bytes, &symbols, names.offset)?;
        object.calls = object.open_calls(&symbols)?;
        Ok(object)
    }

    /// Every program: the functions of the executable sections that carry a program's kind.
    pub(crate) fn programs(&self) -> Result<Vec<Program>> {
        let is_program = |function: &&Function| {
            self.sections.get(function.section).is_some_and(|section| {
                section.kind == SHT_PROGBITS
                    && section.flags & SHF_EXECINSTR != 0
                    && !section.name.starts_with(FUNCTIONS)
            })
        };
        let programs = self.functions.iter().filter(is_program);
        programs
            .map(|function| {
                let mut reached = BTreeSet::new();
                let stack = self.deepest(function, &mut reached, 0)?;
                let instructions = self
                    .functions
                    .iter()
                    .filter(|other| reached.contains(&(other.section, other.start)))
                    .map(|other| other.size / INSTRUCTION as u64)
                    .sum();
                Ok(Program {
                    name: function.name.clone(),
                    instructions,
                    stack,
                })
            })
            .collect()
    }

    /// Stack of the deepest way through `function`; notes every function on the way.
    fn deepest(
        &self,
        function: &Function,
        reached: &mut BTreeSet<(usize, u64)>,
        depth: u32,
    ) -> Result<u64> {
        if depth > 8 {
            bail!(
                "{}: calls more than 8 deep, which the verifier refuses",
                function.name
            );
        }
        reached.insert((function.section, function.start));
        let section = self
            .sections
            .get(function.section)
            .context("a function nowhere")?;
        let code = slice(
            self.bytes,
            section.offset + usize::try_from(function.start)?,
            usize::try_from(function.size)?,
        )?;
        let frame = Frame::of(code);
        let mut below = 0;
        for (at, offset) in frame.calls {
            let place = function.start + at;
            let target = match self.calls.get(&(function.section, place)) {
                Some(&target) => target,
                None => (function.section, next(place, offset)?),
            };
            let called = self
                .functions
                .iter()
                .find(|other| (other.section, other.start) == target)
                .with_context(|| format!("{}: calls into nowhere", function.name))?;
            below = below.max(self.deepest(called, reached, depth + 1)?);
        }
        Ok(frame.bytes.next_multiple_of(FRAME_STEP) + below)
    }

    fn open_calls(&self, symbols: &Section) -> Result<BTreeMap<(usize, u64), (usize, u64)>> {
        let mut calls = BTreeMap::new();
        for relocations in self
            .sections
            .iter()
            .filter(|section| section.kind == SHT_REL)
        {
            let Some(code) = self.sections.get(relocations.info) else {
                continue;
            };
            if code.flags & SHF_EXECINSTR == 0 {
                continue;
            }
            for entry in entries(self.bytes, relocations, RELOCATION)? {
                let place = u64_at(entry, 0)?;
                let symbol = usize::try_from(u64_at(entry, 8)? >> 32)?;
                let symbol = slice(self.bytes, symbols.offset + symbol * SYMBOL, SYMBOL)?;
                let at = code.offset + usize::try_from(place)?;
                let instruction = Instruction::read(slice(self.bytes, at, INSTRUCTION)?)?;
                if !instruction.is_function_call() {
                    continue;
                }
                let base = u64_at(symbol, 8)?;
                let is_function = byte_at(symbol, 4)? & 0xf == STT_FUNC;
                // Against a section, the instruction itself carries the offset into it.
                let start = if is_function {
                    base
                } else {
                    base + next(0, instruction.imm)?
                };
                calls.insert(
                    (relocations.info, place),
                    (usize::from(u16_at(symbol, 6)?), start),
                );
            }
        }
        Ok(calls)
    }
}

/// The offset that a call `distance` instructions past the next one leads to.
fn next(place: u64, distance: i32) -> Result<u64> {
    let target = place.checked_add_signed(8 * (i64::from(distance) + 1));
    target.context("a call before the section's start")
}

/// What one function does with the stack, and whom it calls (offset of the call, its immediate).
#[derive(Debug, Default, Eq, PartialEq)]
struct Frame {
    bytes: u64,
    calls: Vec<(u64, i32)>,
}

impl Frame {
    /// Reads straight down. The compiler makes an address of a local by copying r10 and adding a
    /// negative constant in the same block, so one constant a register is enough.
    fn of(code: &[u8]) -> Self {
        let mut frame = Self::default();
        // Registers that hold r10 plus a constant. r10 itself always does.
        let mut offsets = [None; 16];
        offsets[10] = Some(0i64);
        let mut at = 0;
        while let Some(bytes) = code.get(at..at + INSTRUCTION) {
            let Ok(instruction) = Instruction::read(bytes) else {
                break;
            };
            let base = |register: u8| offsets.get(usize::from(register)).copied().flatten();
            let mut lowest = None;
            match instruction.class() {
                // LDX reads through the source register.
                1 => lowest = base(instruction.src).map(|base| base + i64::from(instruction.off)),
                // ST and STX write through the destination register.
                2 | 3 => {
                    lowest = base(instruction.dst).map(|base| base + i64::from(instruction.off));
                }
                _ => {}
            }
            if instruction.is_function_call() {
                frame.calls.push((at as u64, instruction.imm));
            }
            let written = match instruction.opcode {
                0xbf => Some(base(instruction.src)),
                // add64 of a constant
                0x07 => {
                    let moved = base(instruction.dst).map(|base| base + i64::from(instruction.imm));
                    lowest = moved;
                    Some(moved)
                }
                _ if matches!(instruction.class(), 0 | 1 | 4 | 7) => Some(None),
                _ => None,
            };
            if let Some(value) = written
                && instruction.dst != 10
                && let Some(offset) = offsets.get_mut(usize::from(instruction.dst))
            {
                *offset = value;
            }
            frame.bytes = frame
                .bytes
                .max(lowest.map_or(0, |low| low.min(0).unsigned_abs()));
            // A 64-bit constant takes two places.
            at += if instruction.opcode == 0x18 { 2 } else { 1 } * INSTRUCTION;
        }
        frame
    }
}

#[derive(Debug)]
struct Instruction {
    opcode: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Result<Self> {
        let registers = byte_at(bytes, 1)?;
        Ok(Self {
            opcode: byte_at(bytes, 0)?,
            dst: registers & 0xf,
            src: registers >> 4,
            off: u16_at(bytes, 2)?.cast_signed(),
            imm: u32_at(bytes, 4)?.cast_signed(),
        })
    }

    fn class(&self) -> u8 {
        self.opcode & 7
    }

    /// A call of another function of the object (`BPF_PSEUDO_CALL`), not of a helper.
    fn is_function_call(&self) -> bool {
        self.opcode == 0x85 && self.src == 1
    }
}

fn sections(bytes: &[u8]) -> Result<Vec<Section>> {
    let table = usize::try_from(u64_at(bytes, 40)?)?;
    let count = usize::from(u16_at(bytes, 60)?);
    let names = usize::from(u16_at(bytes, 62)?);
    let headers: Result<Vec<&[u8]>> = (0..count)
        .map(|at| slice(bytes, table + at * SECTION_HEADER, SECTION_HEADER))
        .collect();
    let headers = headers?;
    let names = headers.get(names).context("sections without names")?;
    let names = usize::try_from(u64_at(names, 24)?)?;
    headers
        .iter()
        .map(|header| {
            Ok(Section {
                name: text(bytes, names + u32_at(header, 0)? as usize)?,
                kind: u32_at(header, 4)?,
                flags: u64_at(header, 8)?,
                offset: usize::try_from(u64_at(header, 24)?)?,
                size: usize::try_from(u64_at(header, 32)?)?,
                link: u32_at(header, 40)? as usize,
                info: u32_at(header, 44)? as usize,
            })
        })
        .collect()
}

fn functions(bytes: &[u8], symbols: &Section, names: usize) -> Result<Vec<Function>> {
    let mut functions = Vec::new();
    for symbol in entries(bytes, symbols, SYMBOL)? {
        if byte_at(symbol, 4)? & 0xf == STT_FUNC {
            functions.push(Function {
                name: text(bytes, names + u32_at(symbol, 0)? as usize)?,
                section: usize::from(u16_at(symbol, 6)?),
                start: u64_at(symbol, 8)?,
                size: u64_at(symbol, 16)?,
            });
        }
    }
    Ok(functions)
}

fn entries<'a>(
    bytes: &'a [u8],
    section: &Section,
    size: usize,
) -> Result<std::slice::ChunksExact<'a, u8>> {
    Ok(slice(bytes, section.offset, section.size)?.chunks_exact(size))
}

fn slice(bytes: &[u8], offset: usize, size: usize) -> Result<&[u8]> {
    bytes
        .get(offset..)
        .and_then(|rest| rest.get(..size))
        .context("the object is cut short")
}

fn byte_at(bytes: &[u8], offset: usize) -> Result<u8> {
    bytes
        .get(offset)
        .copied()
        .context("the object is cut short")
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(slice(bytes, offset, 2)?.try_into()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(slice(bytes, offset, 4)?.try_into()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(slice(bytes, offset, 8)?.try_into()?))
}

fn text(bytes: &[u8], offset: usize) -> Result<String> {
    let rest = bytes.get(offset..).context("the object is cut short")?;
    let end = rest
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(rest.len());
    Ok(String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(opcode: u8, dst: u8, src: u8, off: i16, imm: i32) -> Vec<u8> {
        let mut bytes = vec![opcode, dst | src << 4];
        bytes.extend(off.to_le_bytes());
        bytes.extend(imm.to_le_bytes());
        bytes
    }

    #[test]
    fn a_store_below_the_frame_pointer_is_stack() {
        // *(u64 *)(r10 - 24) = r1
        let frame = Frame::of(&instruction(0x7b, 10, 1, -24, 0));
        assert_eq!(frame.bytes, 24);
    }

    #[test]
    fn an_address_handed_to_a_helper_is_stack() {
        // r2 = r10; r2 += -40; call 1
        let mut code = instruction(0xbf, 2, 10, 0, 0);
        code.extend(instruction(0x07, 2, 0, 0, -40));
        code.extend(instruction(0x85, 0, 0, 0, 1));
        assert_eq!(
            Frame::of(&code),
            Frame {
                bytes: 40,
                calls: vec![]
            }
        );
    }

    #[test]
    fn a_register_that_was_overwritten_is_no_stack() {
        // r2 = r10; r2 = *(u64 *)(r1 + 0); *(u64 *)(r2 - 400) = r1
        let mut code = instruction(0xbf, 2, 10, 0, 0);
        code.extend(instruction(0x79, 2, 1, 0, 0));
        code.extend(instruction(0x7b, 2, 1, -400, 0));
        assert_eq!(Frame::of(&code).bytes, 0);
    }

    #[test]
    fn a_call_of_our_own_function_is_noted_and_a_helper_is_not() {
        let mut code = instruction(0x85, 0, 0, 0, 1);
        code.extend(instruction(0x85, 0, 1, 0, 7));
        assert_eq!(Frame::of(&code).calls, [(8, 7)]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(Object::parse(b"MZ").is_err());
        assert!(Object::parse(b"\x7fELF\x02\x01").is_err());
    }
}
