/*
 * map_keys ID: the keys of a BPF map whose keys are 32-bit numbers, one per line.
 *
 * cc -O2 map_keys.c -o map_keys
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A map that changes meanwhile may begin anew; none of ours is as large. */
#define MAX_KEYS (1u << 20)

static long bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

int main(int argc, char **argv)
{
	union bpf_attr attributes;
	uint32_t key = 0, next;
	int map;

	if (argc != 2) {
		fprintf(stderr, "usage: map_keys ID\n");
		return 64;
	}
	memset(&attributes, 0, sizeof(attributes));
	attributes.map_id = (uint32_t)atol(argv[1]);
	map = (int)bpf(BPF_MAP_GET_FD_BY_ID, &attributes);
	if (map < 0) {
		perror(argv[1]);
		return 1;
	}
	for (uint32_t keys = 0; keys < MAX_KEYS; keys++) {
		memset(&attributes, 0, sizeof(attributes));
		attributes.map_fd = (uint32_t)map;
		attributes.key = keys ? (uint64_t)(uintptr_t)&key : 0;
		attributes.next_key = (uint64_t)(uintptr_t)&next;
		if (bpf(BPF_MAP_GET_NEXT_KEY, &attributes)) {
			if (errno == ENOENT)
				return 0;
			perror("BPF_MAP_GET_NEXT_KEY");
			return 1;
		}
		key = next;
		printf("%u\n", key);
	}
	fprintf(stderr, "too many keys\n");
	return 1;
}
