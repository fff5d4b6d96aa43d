import { expect, test } from "vitest";
import { arrow_schema } from "../../ts/cli/batch/arrow_schema.ts";

// pyarrow 26.0.1 reads each value as the schema in its comment:
// pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(value)))

test("embeddings are lists of a fixed size, and the metadata is the file's", () => {
  // image: string not null; embedding: fixed_size_list<element: float not null>[48] not null; {"vit_msn.model": '"größe"'}
  expect(
    arrow_schema(
      [
        { name: "image", type: "utf8" },
        { name: "embedding", type: "float32", list_size: 48 },
      ],
      [{ key: "vit_msn.model", value: '"größe"' }],
    ),
  ).toMatchInlineSnapshot(
    `"/////ygBAAAQAAAAAAAKAA4ADAALAAQACgAAABQAAAAAAAABBAAKAAwAAAAIAAQACgAAAAgAAABEAAAAAQAAAAwAAAAIAAwACAAEAAgAAAAIAAAAFAAAAAkAAAAiZ3LDtsOfZSIAAAANAAAAdml0X21zbi5tb2RlbAAAAAIAAACEAAAABAAAAJT///8QAAAAKAAAAAAAABAMAAAAAQAAACAAAAAJAAAAZW1iZWRkaW5nAAYACAAEAAYAAAAwAAAAzP///xAAAAAkAAAAAAAAAwgAAAAAAAAABwAAAGVsZW1lbnQAAAAGAAgABgAGAAAAAAABABAAFAAQAAAADwAIAAAABAAQAAAAEAAAACAAAAAAAAAFCAAAAAAAAAAFAAAAaW1hZ2UAAAAEAAQABAAAAA=="`,
  );
});

test("labels and scores are lists of a fixed size", () => {
  // image: string not null; labels: fixed_size_list<element: string not null>[3] not null;
  // scores: fixed_size_list<element: float not null>[3] not null
  expect(
    arrow_schema(
      [
        { name: "image", type: "utf8" },
        { name: "labels", type: "utf8", list_size: 3 },
        { name: "scores", type: "float32", list_size: 3 },
      ],
      [],
    ),
  ).toMatchInlineSnapshot(
    `"/////0gBAAAQAAAAAAAKAA4ADAALAAQACgAAABQAAAAAAAABBAAKAAwAAAAIAAQACgAAAAgAAAAIAAAAAAAAAAMAAADgAAAAbAAAAAQAAAA8////EAAAACAAAAAAAAAQDAAAAAEAAAAYAAAABgAAAHNjb3JlcwAAmv///wMAAABs////EAAAACQAAAAAAAADCAAAAAAAAAAHAAAAZWxlbWVudAAAAAYACAAGAAYAAAAAAAEAoP///xAAAAAoAAAAAAAAEAwAAAABAAAAIAAAAAYAAABsYWJlbHMAAAAABgAIAAQABgAAAAMAAADY////EAAAABwAAAAAAAAFCAAAAAAAAAAHAAAAZWxlbWVudADI////EAAUABAAAAAPAAgAAAAEABAAAAAQAAAAIAAAAAAAAAUIAAAAAAAAAAUAAABpbWFnZQAAAAQABAAEAAAA"`,
  );
});
