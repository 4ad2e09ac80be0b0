import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;

/**
 * Sync busy|sleep SECONDS: slow_holder.c with `synchronized` on one object.
 *
 * It prints the same, but for the lock's address and size, which are 0: no thread ever waits on
 * the object, each waits on words of the virtual machine. Threads wait for the start in
 * Sync.waitForStart.
 */
public class Sync {
    static final Object LOCK = new Object();
    static final int REQUESTS = 4;
    static final CountDownLatch START = new CountDownLatch(1);
    static boolean holdSleeps;
    static long durationNs;

    static class Party extends Thread {
        final CountDownLatch arrived = new CountDownLatch(1);
        final boolean isHolder;
        final List<long[]> waits = new ArrayList<>();
        final List<long[]> holds = new ArrayList<>();
        String tid;
        long startNs, endNs, cpuNs, runDelayNs;

        Party(String name, boolean isHolder) {
            super(name);
            this.isHolder = isHolder;
        }

        @Override
        public void run() {
            try {
                tid = Files.readSymbolicLink(Path.of("/proc/thread-self")).getFileName().toString();
                arrived.countDown();
                waitForStart();
                ThreadMXBean clocks = ManagementFactory.getThreadMXBean();
                runDelayNs = runDelay();
                cpuNs = clocks.getCurrentThreadCpuTime();
                startNs = System.nanoTime();
                while (System.nanoTime() < startNs + durationNs) {
                    if (isHolder) holderOuter(this);
                    else requestPath(this);
                    Thread.sleep(isHolder ? 5 : 1);
                }
                endNs = System.nanoTime();
                cpuNs = clocks.getCurrentThreadCpuTime() - cpuNs;
                runDelayNs = runDelay() - runDelayNs;
            } catch (IOException | InterruptedException error) {
                throw new IllegalStateException(error);
            }
        }

        void note(long askedNs, long gotNs, long releasedNs) {
            waits.add(new long[] {askedNs, gotNs});
            holds.add(new long[] {gotNs, releasedNs});
        }
    }

    static void waitForStart() throws InterruptedException {
        START.await();
    }

    static long runDelay() throws IOException {
        String stat = Files.readString(Path.of("/proc/thread-self/schedstat"));
        return Long.parseLong(stat.split(" ")[1]);
    }

    static void busyFor(long ns) {
        long endNs = System.nanoTime() + ns;
        while (System.nanoTime() < endNs) {}
    }

    static void slowHolder(Party self) throws InterruptedException {
        long askedNs = System.nanoTime();
        long gotNs;
        long releasedNs;
        synchronized (LOCK) {
            gotNs = System.nanoTime();
            if (holdSleeps) Thread.sleep(20);
            else busyFor(20_000_000);
            releasedNs = System.nanoTime();
        }
        self.note(askedNs, gotNs, releasedNs);
    }

    static void holderOuter(Party self) throws InterruptedException {
        slowHolder(self);
    }

    static void requestPath(Party self) {
        long askedNs = System.nanoTime();
        long gotNs;
        long releasedNs;
        synchronized (LOCK) {
            gotNs = System.nanoTime();
            busyFor(100_000);
            releasedNs = System.nanoTime();
        }
        self.note(askedNs, gotNs, releasedNs);
    }

    static long sum(List<long[]> intervals) {
        return intervals.stream().mapToLong(interval -> interval[1] - interval[0]).sum();
    }

    /** Both are sorted, and none of one list overlaps another of it. */
    static long overlap(List<long[]> waits, List<long[]> holds) {
        int first = 0;
        long sum = 0;
        for (long[] wait : waits) {
            while (first < holds.size() && holds.get(first)[1] <= wait[0]) first++;
            for (int next = first; next < holds.size() && holds.get(next)[0] < wait[1]; next++) {
                long[] hold = holds.get(next);
                sum += Math.min(hold[1], wait[1]) - Math.max(hold[0], wait[0]);
            }
        }
        return sum;
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        holdSleeps = arguments[0].equals("sleep");
        durationNs = (long) (Double.parseDouble(arguments[1]) * 1e9);
        List<Party> parties = new ArrayList<>();
        parties.add(new Party("holder", true));
        for (int i = 0; i < REQUESTS; i++) parties.add(new Party("request_" + i, false));
        List<String> names = new ArrayList<>();
        for (Party party : parties) {
            party.start();
            party.arrived.await();
            names.add(party.getName() + ":" + party.tid);
        }
        long pid = ProcessHandle.current().pid();
        System.out.println("ready pid=" + pid + " threads=" + String.join(",", names));
        for (int read = System.in.read(); read >= 0 && read != '\n'; read = System.in.read()) {}
        START.countDown();

        long waitNs = 0;
        long slowNs = 0;
        Party holder = parties.get(0);
        for (Party party : parties) {
            party.join();
            System.out.printf(
                "thread name=%s tid=%s wall_ns=%d cpu_ns=%d start_ns=%d end_ns=%d run_delay_ns=%d%n",
                party.getName(), party.tid, party.endNs - party.startNs, party.cpuNs,
                party.startNs, party.endNs, party.runDelayNs);
        }
        for (Party party : parties) {
            long slow = party.isHolder ? 0 : overlap(party.waits, holder.holds);
            long waited = sum(party.waits);
            long max = party.waits.stream().mapToLong(wait -> wait[1] - wait[0]).max().orElse(0);
            if (!party.isHolder) {
                waitNs += waited;
                slowNs += slow;
            }
            System.out.printf(
                "locker thread=%s tid=%s function=%s acquisitions=%d wait_ns=%d max_wait_ns=%d"
                    + " hold_ns=%d slow_ns=%d%n",
                party.getName(), party.tid, party.isHolder ? "slowHolder" : "requestPath",
                party.waits.size(), waited, max, sum(party.holds), slow);
        }
        System.out.printf("lock kind=synchronized address=0x0 size=0 wait_ns=%d hold_ns=%d slow_ns=%d%n",
            waitNs, sum(holder.holds), slowNs);
    }
}
