export default {
  serverExternalPackages: ["vit-msn"],
  headers: async () => [
    {
      source: "/:path*",
      headers: [
        { key: "cross-origin-opener-policy", value: "same-origin" },
        { key: "cross-origin-embedder-policy", value: "require-corp" },
      ],
    },
  ],
};
