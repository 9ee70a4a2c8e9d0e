// The page /docs: the service's own OpenAPI document, rendered without another host.

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // would send the document to swagger.io
});
