//! The compiler: from CUDA C to the machine code of one architecture. No GPU is needed.

use crate::error::{CudaError, Library};
use crate::gpu::Architecture;
use crate::source::{GENERATED, HEADERS, Source};
use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char};

/// Machine code, and what the compiler said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// An ELF image for one architecture.
    pub cubin: Vec<u8>,
    /// What each kernel in it takes.
    pub usage: Vec<Usage>,
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Name of the kernel.
    pub entry: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread keeps in memory, because registers did not suffice.
    pub spill_bytes: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
}

/// The compiler's version, major and minor.
///
/// # Errors
/// It is not on this machine.
pub fn version() -> Result<(i32, i32), CudaError> {
    // SAFETY: opens the library, which has no effect beside its own initialisation.
    if !unsafe { sys::is_culib_present() } {
        let advice = "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` and add its \
                      folder to LD_LIBRARY_PATH";
        return Err(CudaError::Missing { library: Library::Nvrtc, advice });
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    let answer = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    ok("nvrtcVersion", answer)?;
    Ok((major, minor))
}

fn ok(call: &'static str, answer: sys::nvrtcResult) -> Result<(), CudaError> {
    let failed = |NvrtcError(e): NvrtcError| {
        // SAFETY: the library gives a text that lives as long as it is loaded.
        let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(e)) };
        CudaError::Call { call, reason: text.to_string_lossy().into_owned() }
    };
    answer.result().map_err(failed)
}

/// Compiles a source.
///
/// # Errors
/// The compiler is not on this machine, or refuses the text: the error holds what it says.
pub fn compile(source: &Source, to: Architecture) -> Result<Compiled, CudaError> {
    version()?;
    let program = Program::new(source)?;
    let options: Vec<CString> = source.options(to).into_iter().map(text).collect();
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    // SAFETY: the program lives, the options are as many as we say.
    let answer =
        unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    let log = program.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog)?;
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
    if answer == sys::nvrtcResult::NVRTC_ERROR_COMPILATION {
        return Err(source.failed(to, log));
    }
    ok("nvrtcCompileProgram", answer)?;
    let cubin = program.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)?;
    Ok(Compiled { cubin, usage: usage(&log) })
}

/// A text without inner zeros, which no source has.
fn text(s: String) -> CString {
    CString::new(s.replace('\0', " ")).unwrap_or_default()
}

/// A program of the compiler, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Program, CudaError> {
        let owned = |s: &str| text(s.to_owned());
        let (body, file) = (owned(&source.text), owned(&source.file));
        let headers = || HEADERS.iter().copied().chain([(GENERATED, source.generated.as_str())]);
        let names: Vec<CString> = headers().map(|(name, _)| owned(name)).collect();
        let texts: Vec<CString> = headers().map(|(_, text)| owned(text)).collect();
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut program = std::ptr::null_mut();
        // SAFETY: all texts live until the call returns; the compiler copies them.
        let answer = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                body.as_ptr(),
                file.as_ptr(),
                names.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        ok("nvrtcCreateProgram", answer)?;
        Ok(Program(program))
    }

    /// Bytes that the compiler has for us.
    fn bytes(
        &self,
        size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        get: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
    ) -> Result<Vec<u8>, CudaError> {
        let mut count = 0;
        // SAFETY: the program lives; the buffer is as long as the compiler asked for.
        unsafe {
            ok("nvrtcGetSize", size(self.0, &raw mut count))?;
            let mut bytes = vec![0u8; count];
            ok("nvrtcGet", get(self.0, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: ours alone; a failure has nobody to tell.
        unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

/// What the assembler's report says of each kernel.
fn usage(log: &str) -> Vec<Usage> {
    let mut list: Vec<Usage> = vec![];
    for line in log.lines() {
        // "Compiling entry function 'name' for 'sm_80'"
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            list.push(Usage { entry, ..Usage::default() });
        }
        let Some(own) = list.last_mut() else { continue };
        // "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        // "Used 10 registers, used 0 barriers, 1024 bytes smem"
        for part in line.split([',', ':']) {
            let number = || part.split_whitespace().find_map(|word| word.parse::<u32>().ok());
            let value = number().unwrap_or(0);
            match () {
                () if part.contains("bytes stack frame") => own.stack_bytes = value,
                () if part.contains("bytes spill") => {
                    own.spill_bytes = own.spill_bytes.max(value);
                }
                () if part.contains("registers") => own.registers = value,
                () if part.contains("bytes smem") => own.shared_bytes = value,
                () => {}
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'add' for 'sm_90a'\n\
                   ptxas info    : Function properties for add\n\
                   ptxas  .  16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
                   ptxas info    : Used 42 registers, used 1 barriers, 1024 bytes smem";
        let wanted = Usage {
            entry: "add".to_owned(),
            registers: 42,
            spill_bytes: 8,
            stack_bytes: 16,
            shared_bytes: 1024,
        };
        assert_eq!(usage(log), [wanted]);
    }
}
