import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.zip.CRC32;
import java.util.zip.Deflater;

/** Busy SECONDS: Java that is compiled, collected, and calls native code. */
public class Busy {
    static int fibonacci(int n) {
        return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
    }

    static int objects() {
        List<String> all = new ArrayList<>();
        for (int i = 0; i < 20000; i++) all.add("name " + (i * 7919 % 20011));
        Collections.sort(all);
        return String.join(" ", all).hashCode();
    }

    static int nativeCode(byte[] input, byte[] output) {
        CRC32 sum = new CRC32();
        sum.update(input);
        Deflater deflater = new Deflater();
        deflater.setInput(input);
        deflater.finish();
        int length = deflater.deflate(output);
        deflater.end();
        return length + (int) sum.getValue();
    }

    public static void main(String[] arguments) {
        long deadline = System.nanoTime() + (long) (Double.parseDouble(arguments[0]) * 1e9);
        byte[] input = new byte[65536];
        byte[] output = new byte[70000];
        for (int i = 0; i < input.length; i++) input[i] = (byte) (i * i >> 3);
        long total = 0;
        while (System.nanoTime() < deadline) {
            total += fibonacci(22) + objects() + nativeCode(input, output);
        }
        if (total == 0) System.exit(1);
    }
}
