import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * A service of a Java team beside ours, with the official client and its defaults.
 *
 * <p>Reads a command a line and answers with a line, both JSON; see {@code tests/kit/java.py}. It is run from source,
 * and kept to Java 11, which is what the oldest supported distributions have.
 */
public final class Peer implements TransactionListener {
    private final String nameServer;
    private final TransactionMQProducer producer;
    private final Map<String, Queue<MessageExt>> received = new ConcurrentHashMap<>();

    private Peer(String nameServer, String group) throws MQClientException {
        this.nameServer = nameServer;
        producer = new TransactionMQProducer(group);
        producer.setNamesrvAddr(nameServer);
        producer.setTransactionListener(this);
        producer.start();
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err); // what a library prints is no answer
        Peer peer = new Peer(arguments[0], arguments[1]);
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            answers.println(peer.obey(JSON.parseObject(line)));
        }
        System.exit(0); // the client's threads would keep the process
    }

    private JSONObject obey(JSONObject command) throws Exception {
        String what = command.getString("do");
        switch (what) {
            case "send":
                return sent(producer.send(message(command)));
            case "send_in_transaction":
                return sent(producer.sendMessageInTransaction(message(command), command.getString("state")));
            case "subscribe":
                subscribe(command.getString("group"), command.getString("topic"), command.getString("expression"));
                return new JSONObject();
            case "received":
                return received(command.getString("group"));
            default:
                throw new IllegalArgumentException(what);
        }
    }

    private static Message message(JSONObject command) {
        Message message = new Message(command.getString("topic"), decoded(command.getString("body")));
        if (command.containsKey("tag")) {
            message.setTags(command.getString("tag"));
        }
        if (command.containsKey("keys")) {
            message.setKeys(command.getList("keys", String.class));
        }
        JSONObject properties = command.getJSONObject("properties");
        for (String name : properties.keySet()) {
            message.putUserProperty(name, properties.getString(name));
        }
        return message;
    }

    private static JSONObject sent(SendResult result) {
        return JSONObject.of("status", result.getSendStatus().name(), "message_id", result.getMsgId());
    }

    private void subscribe(String group, String topic, String expression) throws MQClientException {
        Queue<MessageExt> queue = new ConcurrentLinkedQueue<>();
        received.put(group, queue);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(nameServer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, expression);
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            queue.addAll(messages);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
    }

    private JSONObject received(String group) {
        JSONArray all = new JSONArray();
        List<MessageExt> messages = new ArrayList<>(received.get(group));
        for (MessageExt message : messages) {
            all.add(JSONObject.of(
                    "body", Base64.getEncoder().encodeToString(message.getBody()),
                    "tag", message.getTags(),
                    "keys", message.getKeys(),
                    "stored_bytes", message.getStoreSize(),
                    "properties", message.getProperties()));
        }
        return JSONObject.of("messages", all);
    }

    private static byte[] decoded(String text) {
        return Base64.getDecoder().decode(text);
    }

    @Override
    public LocalTransactionState executeLocalTransaction(Message message, Object state) {
        return LocalTransactionState.valueOf((String) state);
    }

    @Override
    public LocalTransactionState checkLocalTransaction(MessageExt message) {
        return LocalTransactionState.UNKNOW; // no test leaves one to be asked about
    }
}
