/* Functions of the usual shapes, for seeds of the fuzz targets; see make.sh. */
extern int outside(int);
extern void odd(void);

static volatile int sink;

__attribute__((noinline)) static int leaf(int x) { return x * sink; }

__attribute__((noinline)) int framed(int x)
{
	int room[16];
	for (int i = 0; i < 16; i++)
		room[i] = leaf(x + i);
	return room[x & 15] + leaf(room[(x + 1) & 15]);
}

/* Realigns the stack, so its CFA is an expression. */
__attribute__((noinline)) int aligned(int x)
{
	_Alignas(64) char room[64];
	char *more = __builtin_alloca(x);
	room[x & 63] = framed(x);
	more[0] = room[0];
	sink = (long)more;
	return room[(x + 1) & 63] + leaf(x);
}

__attribute__((noreturn, noinline, cold)) void stop(void)
{
	for (;;)
		sink++;
}

int entry(int x)
{
#ifdef SHARED
	x += outside(x) + outside(x + 1);
#endif
#ifdef ODD
	odd();
#endif
	if (aligned(x) == framed(x + 1))
		stop();
	return leaf(x) + 1;
}
