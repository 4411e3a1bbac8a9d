//! Bytes of instructions as a disassembler reads them, and where constants lie.

use super::*;

fn bytes(emit: impl FnOnce(&mut Assembler)) -> Vec<u8> {
    let mut asm = Assembler::default();
    emit(&mut asm);
    let length = asm.code.len();
    let mut code = asm.finish();
    code.truncate(length);
    code
}

/// As a disassembler reads them.
#[test]
fn instructions_have_their_bytes() {
    // vaddps zmm17, zmm2, zmm31
    let got = bytes(|asm| asm.vector(Op::ADDPS, Zmm(17), Zmm(2), Zmm(31)));
    assert_eq!(got, [0x62, 0x81, 0x6c, 0x48, 0x58, 0xcf]);
    // vfmadd231ps zmm1, zmm20, dword ptr [rsi + 256]{1to16}
    let each = Src::Each(Mem::At(Gpr::Rsi, 256));
    let got = bytes(|asm| asm.vector(Op::FMADD231PS, Zmm(1), Zmm(20), each));
    assert_eq!(got, [0x62, 0xf2, 0x5d, 0x50, 0xb8, 0x8e, 0, 1, 0, 0]);
    // vmovups zmm9 {k1} {z}, [r10 + 4 * rax + 64]
    let from = Src::Memory(Mem::Indexed(Gpr::R10, Gpr::Rax, 2, 64));
    let got = bytes(|asm| asm.masked(Op::MOVUPS_LOAD, Zmm(9), None, from, (Mask(1), true)));
    assert_eq!(got, [0x62, 0x51, 0x7c, 0xc9, 0x10, 0x8c, 0x82, 64, 0, 0, 0]);
    // vpsrad zmm30, zmm5, 23
    let got = bytes(|asm| asm.shift(Shift::RightArithmetic, Zmm(30), Zmm(5), 23));
    assert_eq!(got, [0x62, 0xf1, 0x0d, 0x40, 0x72, 0xe5, 23]);
    // vcmpunordps k2, zmm7, zmm7
    let got = bytes(|asm| asm.compare(Cmp::Unordered, Mask(2), Zmm(7), Zmm(7)));
    assert_eq!(got, [0x62, 0xf1, 0x44, 0x48, 0xc2, 0xd7, 3]);
    // vcvtph2ps zmm18, ymm9
    let got = bytes(|asm| asm.single(Op::CVTPH2PS, Zmm(18), Zmm(9)));
    assert_eq!(got, [0x62, 0xc2, 0x7d, 0x48, 0x13, 0xd1]);
    // vcvtps2ph ymm18, zmm9, 0
    let got = bytes(|asm| asm.narrow_f16(Zmm(18), Zmm(9), NO_MASK));
    assert_eq!(got, [0x62, 0x33, 0x7d, 0x48, 0x1d, 0xca, 0]);
    // mov r10, [rdi + 16]; kmovw k1, r9d
    let got = bytes(|asm| {
        asm.load(Gpr::R10, Gpr::Rdi, 16);
        asm.set_mask(Mask(1), Gpr::R9);
    });
    let wanted = [0x4c, 0x8b, 0x97, 16, 0, 0, 0, 0xc4, 0xc1, 0x78, 0x92, 0xc9];
    assert_eq!(got, wanted);
}

#[test]
fn a_block_has_each_instruction_for_all_of_its_vectors() {
    let one = bytes(|asm| asm.vector(Op::MULPS, Zmm(3), Zmm(4), Zmm(5)));
    let other = bytes(|asm| asm.vector(Op::MULPS, Zmm(18), Zmm(19), Zmm(20)));
    let both = bytes(|asm| {
        asm.vectors = 2;
        asm.vector(Op::MULPS, Zmm(3), Zmm(4), Zmm(5));
    });
    assert_eq!(both, [one, other].concat());
}

#[test]
fn constants_lie_behind_the_code() {
    let mut asm = Assembler::default();
    for _ in 0..2 {
        let one = Src::Each(asm.constant(1f32.to_bits()));
        asm.immediate(Op::PTERNLOGD, Zmm(0), Some(Zmm(1)), one, 0xe4);
    }
    asm.leave();
    let code = asm.finish();
    assert_eq!(code.len(), 64 + 4);
    assert_eq!(code[64..], 1f32.to_le_bytes());
    // Both ways lead there from the end of the instruction, immediate included.
    assert_eq!([code[6], code[17]], [64 - 11, 64 - 22]);
}
