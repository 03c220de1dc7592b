import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.util.Arrays;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * The official client with MariaDB Connector/J, as a Java team would write it: half message, log row, work, COMMIT; and
 * inbox row, work, COMMIT. Each thread keeps a connection and its prepared statements.
 *
 * <p>Takes the lines of {@code benchmarks/contestant.py}.
 */
public final class Contestant implements TransactionListener {
    private static final String WORK = "UPDATE bench SET n = n + 1 WHERE id = ?";
    private static final int MOST_THREADS = 32;
    private static final long QUIET_MILLISECONDS = 500;
    private static final long PATIENCE_SECONDS = 60;

    private final String nameServer;
    private final String jdbcUrl;
    private final String topic;
    private final ExecutorService pool = Executors.newFixedThreadPool(MOST_THREADS);
    private final ThreadLocal<Statements> mine = ThreadLocal.withInitial(this::connect);
    private final Map<Integer, Long> began = new ConcurrentHashMap<>();
    private final LinkedBlockingQueue<Long> handled = new LinkedBlockingQueue<>();
    private TransactionMQProducer producer;
    private volatile CountDownLatch gate = new CountDownLatch(1);
    private String group;

    private Contestant(String nameServer, String jdbcUrl, String topic) {
        this.nameServer = nameServer;
        this.jdbcUrl = jdbcUrl;
        this.topic = topic;
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err); // what a library prints is no answer
        Contestant made = new Contestant(arguments[1], arguments[2], arguments[3]);
        if (arguments[0].equals("produce")) {
            made.startProducer();
        } else {
            made.startConsumer(Integer.parseInt(arguments[4]));
        }
        answers.println("{}"); // ready
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            JSONObject answer = made.obey(JSON.parseObject(line));
            answer.put("resident", residentMib());
            answers.println(answer);
        }
        Runtime.getRuntime().halt(0); // clients are not closed: nobody is told anything by this process any more
    }

    private JSONObject obey(JSONObject command) throws Exception {
        switch (command.getString("do")) {
            case "produce":
                return produce(
                        command.getIntValue("threads"),
                        command.getDoubleValue("seconds"),
                        command.getIntValue("first"),
                        command.getIntValue("step"));
            case "delay":
                return delay(command.getIntValue("count"), command.getDoubleValue("pause"));
            default:
                return drain();
        }
    }

    private void startProducer() throws Exception {
        producer = new TransactionMQProducer("j-" + topic);
        producer.setNamesrvAddr(nameServer);
        producer.setTransactionListener(this);
        producer.start();
    }

    private void work(int number) throws Exception {
        byte[] body = JSON.toJSONBytes(Map.of("n", number));
        Message message = new Message(topic, body);
        message.putUserProperty("rmq_txn_id", UUID.randomUUID().toString().replace("-", ""));
        message.putUserProperty("rmq_txn_n", "0");
        LocalTransactionState state =
                producer.sendMessageInTransaction(message, number).getLocalTransactionState();
        if (state != LocalTransactionState.COMMIT_MESSAGE) {
            throw new IllegalStateException("the local transaction ended as " + state);
        }
    }

    @Override
    public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
        try {
            Statements statements = mine.get();
            int number = (Integer) argument;
            statements.log.setString(1, message.getProperty("rmq_txn_id"));
            statements.log.executeUpdate();
            statements.work.setInt(1, Math.floorMod(number, 1000));
            statements.work.executeUpdate();
            began.computeIfPresent(number, (key, none) -> System.nanoTime());
            statements.connection.commit();
            return LocalTransactionState.COMMIT_MESSAGE;
        } catch (SQLException error) {
            throw new IllegalStateException(error);
        }
    }

    @Override
    public LocalTransactionState checkLocalTransaction(MessageExt message) {
        return LocalTransactionState.UNKNOW;
    }

    private JSONObject produce(int threads, double seconds, int first, int step) throws Exception {
        CountDownLatch together = new CountDownLatch(threads + 1);
        AtomicBoolean stop = new AtomicBoolean();
        ConcurrentLinkedQueue<long[]> took = new ConcurrentLinkedQueue<>();
        Future<?>[] running = new Future<?>[threads];
        for (int thread = 0; thread < threads; thread++) {
            int from = first + step * thread;
            running[thread] = pool.submit(() -> {
                long[] times = new long[1024];
                int done = 0;
                together.countDown();
                together.await();
                for (int number = from; !stop.get(); number += step * threads) {
                    long start = System.nanoTime();
                    work(number);
                    if (done == times.length) {
                        times = Arrays.copyOf(times, 2 * done);
                    }
                    times[done++] = System.nanoTime() - start;
                }
                took.add(Arrays.copyOf(times, done));
                return null;
            });
        }
        while (together.getCount() > 1) {
            Thread.onSpinWait();
        }
        long start = System.nanoTime();
        long cpu = cpuNanoseconds();
        together.countDown();
        TimeUnit.NANOSECONDS.sleep((long) (seconds * 1e9));
        stop.set(true);
        for (Future<?> future : running) {
            future.get();
        }
        JSONObject answer = percentiles(took.stream().flatMapToLong(Arrays::stream).toArray());
        answer.put("seconds", (System.nanoTime() - start) / 1e9);
        answer.put("cpu", (cpuNanoseconds() - cpu) / 1e9);
        return answer;
    }

    private JSONObject delay(int count, double pause) throws Exception {
        LinkedBlockingQueue<Long> arrived = new LinkedBlockingQueue<>();
        DefaultMQPushConsumer consumer = consumer("d-" + topic, 4, message -> {
            Long at = began.get(JSON.parseObject(message.getBody()).getIntValue("n"));
            arrived.add(at == null ? -1 : System.nanoTime() - at);
        });
        consumer.start();
        do {
            work(-1); // a new consumer begins at the end, wherever that is by then
        } while (arrived.poll(2, TimeUnit.SECONDS) == null);
        for (int number = 0; number < count; number++) {
            began.put(number, 0L); // the time comes just before COMMIT
            work(number);
            Thread.sleep((long) (pause * 1000));
        }
        long[] delays = new long[count];
        for (int seen = 0; seen < count; ) {
            Long one = arrived.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
            if (one == null) {
                throw new IllegalStateException(seen + " of " + count + " messages arrived");
            }
            if (one >= 0) {
                delays[seen++] = one;
            }
        }
        consumer.shutdown();
        return percentiles(delays);
    }

    private void startConsumer(int threads) throws Exception {
        group = "c-" + topic;
        consumer(group, threads, this::handle).start();
    }

    private void handle(MessageExt message) throws Exception {
        int number = JSON.parseObject(message.getBody()).getIntValue("n");
        gate.await();
        Statements statements = mine.get();
        statements.inbox.setString(1, group);
        statements.inbox.setString(2, message.getProperty("rmq_txn_id") + "." + message.getProperty("rmq_txn_n"));
        statements.inbox.executeUpdate();
        statements.work.setInt(1, Math.floorMod(number, 1000));
        statements.work.executeUpdate();
        statements.connection.commit();
        handled.add(System.nanoTime());
    }

    private JSONObject drain() throws Exception {
        long cpu = cpuNanoseconds();
        long last = System.nanoTime();
        int done = 0;
        gate.countDown();
        for (Long at; (at = handled.poll(QUIET_MILLISECONDS, TimeUnit.MILLISECONDS)) != null; done++) {
            last = Math.max(last, at);
        }
        gate = new CountDownLatch(1);
        JSONObject answer = new JSONObject();
        answer.put("done", done);
        answer.put("last", last / 1e9);
        answer.put("cpu", (cpuNanoseconds() - cpu) / 1e9);
        return answer;
    }

    private interface Handler {
        void handle(MessageExt message) throws Exception;
    }

    private DefaultMQPushConsumer consumer(String name, int threads, Handler handler) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(name);
        consumer.setNamesrvAddr(nameServer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setConsumeThreadMin(threads);
        consumer.setConsumeThreadMax(threads);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                try {
                    handler.handle(message);
                } catch (Exception error) {
                    error.printStackTrace();
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        return consumer;
    }

    private static final class Statements {
        private final Connection connection;
        private final PreparedStatement log;
        private final PreparedStatement inbox;
        private final PreparedStatement work;

        Statements(Connection connection) throws SQLException {
            connection.setAutoCommit(false);
            this.connection = connection;
            log = connection.prepareStatement(
                    "INSERT INTO rmq_txn_log (txn_id, state, message_ids) VALUES (?, 1, '')");
            inbox = connection.prepareStatement(
                    "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) VALUES (?, ?)");
            work = connection.prepareStatement(WORK);
        }
    }

    private Statements connect() {
        try {
            return new Statements(DriverManager.getConnection(jdbcUrl));
        } catch (SQLException error) {
            throw new IllegalStateException(error);
        }
    }

    private static JSONObject percentiles(long[] nanoseconds) {
        Arrays.sort(nanoseconds);
        JSONObject answer = new JSONObject();
        answer.put("done", nanoseconds.length);
        for (int percent : new int[] {50, 95, 99}) {
            int at = Math.min(nanoseconds.length - 1, nanoseconds.length * percent / 100);
            answer.put("p" + percent, at < 0 ? 0.0 : nanoseconds[at] / 1e6);
        }
        return answer;
    }

    private static long cpuNanoseconds() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
                .getProcessCpuTime();
    }

    private static double residentMib() throws Exception {
        String pages = Files.readString(Path.of("/proc/self/statm")).split(" ")[1];
        return Long.parseLong(pages) * 4096 / (double) (1 << 20);
    }
}
