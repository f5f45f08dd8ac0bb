package org.apache.iceberg.rest;

import java.util.HashMap;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.jdbc.JdbcCatalog;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

/**
 * Iceberg's own RESTCatalogServer, on 127.0.0.1 alone: the original listens on all interfaces and has no option for it.
 * Configured by the same environment: CATALOG_REST_PORT, CATALOG_URI, CATALOG_WAREHOUSE and so on.
 *
 * <p>In the original's package, because its adapter is visible only there.
 */
public class LoopbackRestCatalog {
  public static void main(String[] arguments) throws Exception {
    Map<String, String> config = new HashMap<>(RCKUtils.environmentCatalogConfig());
    config.putIfAbsent("catalog-impl", JdbcCatalog.class.getName());
    config.putIfAbsent("jdbc.schema-version", "V1");
    var catalog = CatalogUtil.buildIcebergCatalog("rest_backend", config, new Configuration());
    var context = new RESTCatalogServer.CatalogContext(catalog, config);

    var handler = new ServletContextHandler(ServletContextHandler.NO_SESSIONS);
    handler.addServlet(new ServletHolder(new RESTCatalogServlet(new RESTServerCatalogAdapter(context))), "/*");
    var server = new Server();
    var connector = new ServerConnector(server);
    connector.setHost("127.0.0.1");
    connector.setPort(Integer.parseInt(config.get("rest.port")));
    server.addConnector(connector);
    server.setHandler(handler);
    server.start();
    server.join();
  }
}
