package io.getlime.security.powerauth.app.webflow;

import io.getlime.security.powerauth.lib.nextstep.model.enumeration.AuthResult;
import io.getlime.security.powerauth.lib.webflow.authentication.service.websocket.WebSocketMessageService;
import java.util.Scanner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;

/** In Web Flow's place: each line of its input, OPERATION RESULT, is an approval that came from a phone. */
@SpringBootApplication(scanBasePackages = "io.getlime.security")
public class Application {
    public static void main(String[] arguments) {
        try (var context = SpringApplication.run(Application.class, arguments); var lines = new Scanner(System.in)) {
            var service = context.getBean(WebSocketMessageService.class);
            boolean watched = context.containsBean("redisHealthContributor");
            System.out.println("ready " + service.getClass().getSimpleName() + " health " + watched);
            while (lines.hasNext()) {
                String operationId = lines.next();
                AuthResult result = AuthResult.valueOf(lines.next());
                long start = System.nanoTime();
                String outcome = "done";
                try {
                    service.notifyAuthorizationComplete(operationId, result);
                } catch (IllegalStateException e) {
                    outcome = "failed";
                }
                System.out.println(outcome + " " + (System.nanoTime() - start) / 1_000_000);
            }
        }
    }
}
