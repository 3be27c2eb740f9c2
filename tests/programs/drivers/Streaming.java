import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;

/** Streams chat completions with the JDK's own client as it is, which offers HTTP/2 over cleartext. */
public class Streaming {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] arguments) throws Exception {
        System.out.println("one: " + text(CLIENT.send(request("one"), lines())));
        // The same connection again, and several at once.
        System.out.println("two: " + text(CLIENT.send(request("two"), lines())));
        List<CompletableFuture<HttpResponse<java.util.stream.Stream<String>>>> several =
            List.of(CLIENT.sendAsync(request("three"), lines()), CLIENT.sendAsync(request("four"), lines()));
        for (var answer : several) {
            System.out.println("several: " + text(answer.get()));
        }
    }

    private static HttpRequest request(String question) {
        String body = "{\"model\": \"ling-nano\", \"stream\": true, \"temperature\": 0, \"messages\": "
            + "[{\"role\": \"user\", \"content\": \"Hello! Who are you? (" + question + ")\"}]}";
        return HttpRequest.newBuilder(URI.create("http://127.0.0.1:8000/v1/chat/completions"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer dummy")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }

    private static HttpResponse.BodyHandler<java.util.stream.Stream<String>> lines() {
        return HttpResponse.BodyHandlers.ofLines();
    }

    private static String text(HttpResponse<java.util.stream.Stream<String>> answer) {
        String events = answer.body().filter(line -> line.startsWith("data: ")).collect(Collectors.joining("\n"));
        if (answer.statusCode() != 200 || !events.endsWith("data: [DONE]")) {
            throw new IllegalStateException(answer.statusCode() + ": " + events);
        }
        // The texts are the strings of "content"; they hold no quotes here.
        return events.lines()
            .filter(line -> line.contains("\"content\":\""))
            .map(line -> line.split("\"content\":\"")[1].split("\"")[0])
            .collect(Collectors.joining());
    }
}
