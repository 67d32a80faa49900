# SPDX-License-Identifier: Apache-2.0
"""Lists what every kernel of libvorta_trt.so takes of a GPU: registers, stack and shared memory.

    python studies/kernel_resources.py [LIBRARY or WHEEL] [--brief] [--json]

The machine code lies in the library's section .nv_fatbin, as one ELF file (a cubin) for each source and architecture.
A kernel that spills registers has a stack frame; these kernels have no other use for one. No GPU and no tool of the
CUDA toolkit is needed. The exit code is 1 if a kernel has a larger stack frame than is accepted of it.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FATBIN_MAGIC = 0xBA55ED50
PTX, CUBIN = 1, 2
# Attributes of .nv.info: a symbol's number and a value of 32 bits.
FRAME_SIZE, REGISTERS = 0x11, 0x2F
_SIZED = 4  # the format of an attribute with a length and that many bytes


# Bytes of stack that are accepted, by architecture and the title's first and last word. On 80, 86, 89, 90 and 120 no
# kernel has any.
KNOWN_STACK = {(100, "sm80", "64"): 8}  # the generic kernel of 64 columns, not compiled for 100 since it last changed
NO_PART_OF_A_TITLE = ("vorta", "cutlass", "KernelTraits", "Params", "Plan", "Images")


@dataclass(frozen=True)
class Section:
    """A section of an ELF file."""

    name: str
    link: int
    content: bytes


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes on one architecture.

    Attributes:
        name: The kernel's name, as the compiler mangled it.
        architecture: GPU architecture of its machine code, e.g. 90.
        registers: Registers of each thread, at launch.
        stack_bytes: Stack of each thread; more than 0 means spilled registers.
        shared_bytes: Static shared memory of a thread block; what a launch asks for comes on top, and from
            SM90 on CUDA's own 1024 bytes are counted.
        code_bytes: Size of its machine code.
    """

    name: str
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    code_bytes: int

    @property
    def title(self) -> str:
        """The name in a readable form, such as "sm90 attention_kernel bfloat16_t 128"."""
        words, position = [], 0
        while match := re.compile(r"(?<!S)\d+|Li\d+E").search(self.name, position):
            position = match.end()
            if match[0].startswith("Li"):
                words.append(match[0][2:-1])
                continue
            word = self.name[position : position + int(match[0])]
            position += int(match[0])
            if not word.startswith("_GLOBAL") and not word.endswith(NO_PART_OF_A_TITLE):
                words.append(word)
        return " ".join(words)


def accepted_stack(kernel: Kernel) -> int:
    """Bytes of stack that are accepted of a kernel; 0 for almost all."""
    words = kernel.title.split()
    return KNOWN_STACK.get((kernel.architecture, words[0], words[-1]), 0)


def elf_sections(data: bytes) -> list[Section]:
    """The sections of a 64-bit little-endian ELF file.

    Raises:
        ValueError: The data is something else.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{data[:6].hex(' ')}: not the beginning of a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    count, names = struct.unpack_from("<HH", data, 0x3C)
    headers = [struct.unpack_from("<IIQQQQII", data, table + 64 * index) for index in range(count)]

    def content(index: int) -> bytes:
        _, kind, _, _, offset, size, _, _ = headers[index]
        return b"" if kind == 8 else data[offset : offset + size]  # SHT_NOBITS has a size only

    strings = content(names)
    return [
        Section(strings[header[0] : strings.index(b"\0", header[0])].decode(), header[6],
                content(index) or bytes(header[5] if header[1] == 8 else 0))
        for index, header in enumerate(headers)
    ]  # fmt: skip


def fatbin_entries(fatbin: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind (PTX or CUBIN), architecture and content of what nvcc has put into a section .nv_fatbin."""
    position = 0
    while position + 16 <= len(fatbin):
        magic, _, header, size = struct.unpack_from("<IHHQ", fatbin, position)
        if magic != FATBIN_MAGIC:
            position += 8  # padding between fat binaries
            continue
        entry, position = position + header, position + header + size
        while entry < position:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", fatbin, entry)
            (architecture,) = struct.unpack_from("<I", fatbin, entry + 28)
            yield kind, architecture, fatbin[entry + entry_header : entry + entry_header + entry_size]
            entry += entry_header + entry_size


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, position)
        length = value if form == _SIZED else 0
        if length:
            yield attribute, info[position + 4 : position + 4 + length]
        position += 4 + length


def cubin_kernels(cubin: bytes, architecture: int) -> list[Kernel]:
    """The kernels of one cubin."""
    sections = elf_sections(cubin)
    by_name = {section.name: section for section in sections}
    symbols, strings = by_name[".symtab"].content, by_name[".strtab"].content

    def symbol(index: int) -> str:
        (name,) = struct.unpack_from("<I", symbols, 24 * index)
        return strings[name : strings.index(b"\0", name)].decode()

    values: dict[int, dict[str, int]] = {FRAME_SIZE: {}, REGISTERS: {}}
    for attribute, content in _attributes(by_name[".nv.info"].content):
        if attribute in values:
            index, value = struct.unpack("<II", content)
            values[attribute][symbol(index)] = value
    kernels = []
    for section in sections:
        name = section.name.removeprefix(".text.")
        if name == section.name:
            continue
        shared = by_name.get(f".nv.shared.{name}")
        kernels.append(
            Kernel(
                name=name,
                architecture=architecture,
                registers=values[REGISTERS][name],
                stack_bytes=values[FRAME_SIZE][name],
                shared_bytes=len(shared.content) if shared else 0,
                code_bytes=len(section.content),
            )
        )
    return kernels


def library_kernels(library: bytes) -> list[Kernel]:
    """Every kernel of a library or an object file, once for each architecture that it has machine code for.

    Args:
        library: The content of the file.

    Raises:
        ValueError: The library holds no GPU code.
    """
    fatbins = [section.content for section in elf_sections(library) if section.name == ".nv_fatbin"]
    if not fatbins:
        raise ValueError("it has no section .nv_fatbin, so there is no GPU code in it; give libvorta_trt.so")
    kernels = []
    for kind, architecture, content in fatbin_entries(fatbins[0]):
        if kind == CUBIN:
            kernels += cubin_kernels(content, architecture)
    return sorted(kernels, key=lambda kernel: (kernel.architecture, kernel.title))


def read_library(path: Path) -> bytes:
    """The library: `path` itself, or the one in a wheel."""
    if path.suffix != ".whl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read("vorta_trt/plugins/libvorta_trt.so")


def _print(kernels: list[Kernel], brief: bool) -> None:
    for kernel in kernels:
        if kernel.stack_bytes or not brief:
            print(
                f"sm_{kernel.architecture:<4} {kernel.registers:4} registers {kernel.stack_bytes:5} bytes of stack "
                f"{kernel.shared_bytes:6} of shared memory {kernel.code_bytes:8} of code  {kernel.title}"
            )
    for architecture in sorted({kernel.architecture for kernel in kernels}):
        those = [kernel for kernel in kernels if kernel.architecture == architecture]
        print(
            f"sm_{architecture:<4} {len(those)} kernels, {sum(kernel.code_bytes for kernel in those) / 1e6:.2f} MB of "
            f"code, {sum(kernel.stack_bytes > 0 for kernel in those)} with spilled registers"
        )


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Registers, stack and shared memory of every kernel of the library.")
    parser.add_argument("library", type=Path, nargs="?", help="or a wheel [default: that of the installation]")
    parser.add_argument("--brief", action="store_true", help="name only kernels that spill registers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    path = arguments.library
    if path is None:
        from vorta_trt.plugins import library_path  # a wheel is looked at where nothing is installed

        path = library_path()
    try:
        kernels = library_kernels(read_library(path))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps([asdict(kernel) for kernel in kernels], indent=1))
    else:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        _print(kernels, arguments.brief)
    return int(any(kernel.stack_bytes > accepted_stack(kernel) for kernel in kernels))


if __name__ == "__main__":
    sys.exit(main())
