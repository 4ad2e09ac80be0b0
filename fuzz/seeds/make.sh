#!/usr/bin/env bash
# Makes the seeds from frames.c and odd.S: small ELF files of all kinds, torn and altered
# ones, and call frame information alone. They are committed, so that fuzzing needs neither
# these compilers (gcc, gcc-aarch64-linux-gnu, binutils) nor their present versions.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf compile eh_frame
mkdir compile eh_frame

flags="-O2 -nostdlib -fno-stack-protector -ffreestanding -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,norelro -Wl,-e,entry -Wl,--eh-frame-hdr"
static="-static -DODD odd.S"
shared="-shared -fPIC -DSHARED"

gcc $flags $static frames.c -o "$work/static" -s
gcc $flags $shared frames.c -o "$work/shared" -s
gcc $flags -static -fno-omit-frame-pointer -fno-asynchronous-unwind-tables frames.c -o "$work/nothing" -s
aarch64-linux-gnu-gcc $flags -static frames.c -o "$work/arm-static" -s
aarch64-linux-gnu-gcc $flags $shared -mbranch-protection=standard frames.c -o "$work/arm-shared" -s

# .debug_frame alone, as it is and compressed; beside .eh_frame; made by Go.
debug() {
	gcc $flags -g $static "$2" "$3" frames.c -o "$work/$1"
	objcopy --strip-all --keep-section=.debug_frame "$work/$1"
}
debug debug-frame -DDEBUG_FRAME=.debug_frame -fno-asynchronous-unwind-tables
debug both "-DDEBUG_FRAME=.eh_frame, .debug_frame" -Wa,--gdwarf-5
objcopy --compress-debug-sections=zlib "$work/debug-frame" "$work/compressed"
printf go >"$work/go-mark"
objcopy --add-section .go.buildinfo="$work/go-mark" "$work/static" "$work/go"

# Without section headers: e_shoff, e_shnum and e_shstrndx are 0.
for kind in static arm-shared; do
	cp "$work/$kind" "$work/$kind-bare"
	printf '\0\0\0\0\0\0\0\0' | dd of="$work/$kind-bare" bs=1 seek=40 conv=notrunc status=none
	printf '\0\0\0\0' | dd of="$work/$kind-bare" bs=1 seek=60 conv=notrunc status=none
done
rm -f "$work/go-mark"
cp "$work"/* compile/
chmod 644 compile/*

# Torn, and with sizes from elsewhere.
size=$(stat -c %s "$work/shared")
head -c $((size / 2)) "$work/shared" >compile/torn-half
head -c 100 "$work/shared" >compile/torn-headers
cp "$work/static" compile/altered-segments
printf '\377\377\377\377\377\377\377\177' | dd of=compile/altered-segments bs=1 seek=$((64 + 32)) conv=notrunc status=none

# First the byte that says what kind of file is made around it; see src/image.rs.
frames() {
	"${5:-}objcopy" --dump-section "$2=$work/section" "$work/$1" "$work/copy"
	{ printf "$3"; cat "$work/section"; } >"eh_frame/$1-$4"
}
frames static .eh_frame '\x00' sections
frames static .eh_frame '\x04' bare
frames static .eh_frame '\x08' go
frames static .eh_frame '\x10' both
frames shared .eh_frame '\x00' sections
frames debug-frame .debug_frame '\x02' debug
frames arm-static .eh_frame '\x01' sections aarch64-linux-gnu-
frames arm-shared .eh_frame '\x05' bare aarch64-linux-gnu-
du -bc compile eh_frame | tail -1
